//! Cutting input into statements at semicolons, without parsing it: the shell must know whether a
//! statement is complete before it is right.

/// What has been typed so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Input {
    /// Complete statements, without their semicolons.
    pub(crate) statements: Vec<String>,
    /// The text after the last semicolon; empty when it holds only white space and comments.
    pub(crate) rest: String,
}

/// Cuts `text` at the semicolons that are in no string, quoted name or comment.
pub(crate) fn split(text: &str) -> Input {
    let mut input = Input::default();
    let mut start = 0;
    let mut has_content = false;
    let mut position = 0;
    while let Some(character) = text.get(position..).and_then(|rest| rest.chars().next()) {
        let rest = &text[position..];
        let (length, is_content) = token(rest, character);
        if character == ';' {
            if has_content {
                input.statements.push(text[start..position].trim().to_owned());
            }
            start = position + length;
            has_content = false;
        } else {
            has_content |= is_content;
        }
        position += length;
    }
    if has_content {
        text[start..].trim_start().clone_into(&mut input.rest);
    }
    input
}

/// The length of the token at the start of `rest`, and whether it is part of a statement (white
/// space and comments are not). What is opened and not closed goes to the end, and is content, so
/// that more input is waited for.
fn token(rest: &str, first: char) -> (usize, bool) {
    let to_end = (rest.len(), true);
    match first {
        '\'' | '"' => quoted(rest, first).map_or(to_end, |length| (length, true)),
        '-' if rest.starts_with("--") => (rest.find('\n').map_or(rest.len(), |end| end + 1), false),
        '/' if rest.starts_with("/*") => block_comment(rest).map_or(to_end, |length| (length, false)),
        '$' => match dollar_tag(rest) {
            Some(tag) => {
                let body = &rest[tag.len()..];
                body.find(tag).map_or(to_end, |end| (end + 2 * tag.len(), true))
            }
            None => (1, true),
        },
        _ => (first.len_utf8(), !first.is_whitespace()),
    }
}

/// The length of a quoted text; a doubled quote stands for itself and simply opens the next piece.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    rest.get(1..)?.find(quote).map(|end| end + 2)
}

/// The length of a block comment; they nest.
fn block_comment(rest: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut position = 0;
    let bytes = rest.as_bytes();
    while let Some(pair) = bytes.get(position..position + 2) {
        match pair {
            b"/*" => {
                depth += 1;
                position += 2;
            }
            b"*/" => {
                depth = depth.saturating_sub(1);
                position += 2;
                if depth == 0 {
                    return Some(position);
                }
            }
            _ => position += 1,
        }
    }
    None
}

/// `$$` or `$tag$` at the start; `$1` is a parameter and none.
fn dollar_tag(rest: &str) -> Option<&str> {
    let end = rest.get(1..)?.find('$')? + 1;
    let tag = &rest[1..end];
    let is_tag = tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_ascii_digit());
    is_tag.then(|| &rest[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, statements: &[&str], rest: &str) {
        let input = split(text);
        assert_eq!(input.statements, statements, "{text}");
        assert_eq!(input.rest, rest, "{text}");
    }

    #[test]
    fn semicolons_end_statements() {
        check("select 1; select 2;", &["select 1", "select 2"], "");
        check("select 1;\nselect", &["select 1"], "select");
        check(" ;; ", &[], "");
        check("", &[], "");
    }

    #[test]
    fn semicolons_in_strings_names_and_comments_do_not() {
        check("select ';', \"a;b\";", &["select ';', \"a;b\""], "");
        check("select 'it''s;';", &["select 'it''s;'"], "");
        check("select 1 -- no; end\n;", &["select 1 -- no; end"], "");
        check("select /* a; /* b; */ c; */ 1;", &["select /* a; /* b; */ c; */ 1"], "");
        check("select $$a;b$$, $x$;$$;$x$;", &["select $$a;b$$, $x$;$$;$x$"], "");
        check("execute p($1); select $2;", &["execute p($1)", "select $2"], "");
        check("select 'ä;ö' as \"é\";", &["select 'ä;ö' as \"é\""], "");
    }

    #[test]
    fn comments_alone_are_no_statement() {
        check("-- hello\n/* world */ ;", &[], "");
        check("select 1; -- done", &["select 1"], "");
    }

    #[test]
    fn what_is_open_waits_for_more() {
        for text in ["select 'a;", "select \"a;", "select /* a;", "select 1", "select $$;"] {
            assert_eq!(split(text).rest, text);
        }
    }
}
