//! Text of a far end, made fit to be shown to a person.

/// Returns text as one line that is safe to print: of at most so many characters, and a sign that it goes on.
pub fn in_one_line(text: &str, most: usize) -> String {
    let printable = |letter: char| match letter {
        char::REPLACEMENT_CHARACTER => ' ',
        letter if letter.is_control() => ' ',
        letter => letter,
    };
    let line: String = text.chars().map(printable).collect();
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_move_a_cursor_or_fill_a_screen_is_left_out() {
        assert_eq!(in_one_line(" a\r\n\u{1b}[1mb\u{fffd}\tc ", 20), "a [1mb c");
        assert_eq!(in_one_line("żółw", 4), "żółw");
        assert_eq!(in_one_line("żółwie", 4), "żółw…");
    }
}
