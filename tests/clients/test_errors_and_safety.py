"""What goes wrong must be told by name, with a stable code; and the server's files stay its own."""

import pytest


def refused(cursor, sql, *parts):
    """Runs `sql`, expects an error with every one of `parts` in its text, and returns that text."""
    with pytest.raises(Exception) as caught:
        cursor.execute(sql)
        cursor.fetchall()
    text = str(caught.value)
    for part in parts:
        assert part in text, text
    return text


@pytest.fixture
def people(cursor, name):
    cursor.execute(f"create table people_{name} (id bigint, first_name varchar)")
    return f"people_{name}"


def test_sql_that_does_not_parse(cursor):
    refused(cursor, "selec 1", "SQL_SYNTAX")


def test_an_unknown_table_names_the_nearest(cursor, people):
    wrong = people.replace("people", "peple")
    refused(cursor, f"select * from {wrong}", "TABLE_NOT_FOUND", wrong, people)


def test_an_unknown_column_names_the_nearest(cursor, people):
    refused(cursor, f"select frist_name from {people}", "COLUMN_NOT_FOUND", "frist_name", "first_name")


def test_types_that_do_not_fit(cursor, people):
    refused(cursor, f"select id + date '2024-01-01' and true from {people}", "SQL_PLAN")


def test_division_by_zero(cursor):
    refused(cursor, "select 1 / (value - value) from generate_series(1, 3)", "DIVISION_BY_ZERO")


def test_a_table_that_exists(cursor, people):
    refused(cursor, f"create table {people} (id bigint)", "ALREADY_EXISTS", people)


@pytest.mark.parametrize("sql", ["update {} set id = 1", "delete from {}", "begin"])
def test_what_comes_later_says_so(cursor, people, sql):
    text = refused(cursor, sql.format(people), "NOT_SUPPORTED")
    assert "not supported yet" in text


def test_a_failed_statement_leaves_nothing(cursor, rows, name):
    refused(cursor, f"create table {name} as select 1 / (value - 2) as x from generate_series(1, 3)", "DIVISION_BY_ZERO")
    assert rows(f"select * from information_schema.tables where table_name = '{name}'") == []


def test_a_failed_insert_leaves_nothing(cursor, rows, people):
    refused(cursor, f"insert into {people} select 1 / (value - 2), 'x' from generate_series(1, 3)", "DIVISION_BY_ZERO")
    assert rows(f"select count(*) from {people}") == [(0,)]


def test_an_error_does_not_spoil_the_connection(cursor, rows):
    refused(cursor, "select * from nowhere", "TABLE_NOT_FOUND")
    assert rows("select 1") == [(1,)]


def test_two_statements_in_one_are_refused(cursor):
    refused(cursor, "select 1; select 2")


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.csv"
    path.write_text("word\nhidden\n")
    return path


def test_external_tables_are_refused_over_the_network(cursor, name, secret):
    sql = f"create external table {name} stored as csv location '{secret}' options ('format.has_header' 'true')"
    assert "hidden" not in refused(cursor, sql, "PERMISSION_DENIED")


def test_copy_is_refused_over_the_network(cursor, tmp_path):
    target = tmp_path / "out.csv"
    refused(cursor, f"copy (select 1 as a) to '{target}'", "PERMISSION_DENIED")
    assert not target.exists()


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_paths_in_from_are_refused_over_the_network(cursor, secret, form):
    assert "hidden" not in refused(cursor, f"select * from '{form.format(secret)}'", "PERMISSION_DENIED")


def test_a_path_that_does_not_exist_gets_the_same_answer(cursor, tmp_path):
    refused(cursor, f"select * from '{tmp_path / 'nothing.csv'}'", "PERMISSION_DENIED")


def test_a_copy_inside_explain_analyze_is_refused_too(cursor, tmp_path):
    target = tmp_path / "out.csv"
    refused(cursor, f"explain analyze copy (select 1 as a) to '{target}'", "PERMISSION_DENIED")
    assert not target.exists()
