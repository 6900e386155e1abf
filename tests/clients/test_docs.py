"""What the documents say is so: the table of error codes, and the links.

`python tests/clients/test_docs.py` writes docs/errors.md anew from proto/src/code.rs.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
ERRORS = ROOT / "docs" / "errors.md"
CODE = re.compile(r'((?:[ \t]*///[^\n]*\n)+)[ \t]+\w+ = (\d+), "(\w+)", (\w+), (\w+);')
AREAS = {1: "General", 2: "SQL", 3: "Catalog and manifest", 4: "Storage", 5: "Wire", 6: "Files"}
RETRY = {"Never": "no", "OtherReplica": "at another replica", "Later": "after a pause"}
HEAD = """# Error codes

Every error has a stable number and a stable text, shown in brackets after its message; most come with a hint what to do.
The full error travels in the details of the gRPC status, so a program should look at the code and never at the message.
"Again" says whether the same request may work when it is sent once more: the coordinator tries other replicas by itself, and what reaches a client has failed there too.
"""


def errors_page():
    """The page as it should be."""
    source = (ROOT / "proto" / "src" / "code.rs").read_text()
    parts, area = [HEAD], None
    for docs, number, text, grpc, retry in CODE.findall(source):
        if int(number) // 100 != area:
            area = int(number) // 100
            parts.append(f"\n## {AREAS[area]}\n\n| number | code | meaning | gRPC | again |\n| --- | --- | --- | --- | --- |\n")
        meaning = " ".join(line.strip().removeprefix("///").strip() for line in docs.strip().splitlines())
        grpc = re.sub(r"(?<!^)(?=[A-Z])", "_", grpc).upper()
        parts.append(f"| {number} | `{text}` | {meaning} | {grpc} | {RETRY[retry]} |\n")
    return "".join(parts)


def test_the_page_of_errors_is_that_of_the_code():
    assert ERRORS.read_text() == errors_page(), "write it anew with `python tests/clients/test_docs.py`"


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


if __name__ == "__main__":
    ERRORS.write_text(errors_page())
