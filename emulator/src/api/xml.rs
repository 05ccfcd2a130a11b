//! Writes XML: elements and text, which is all that the Query protocols need.

use std::fmt::Display;

/// XML under construction. Element names are literals of ours; text is escaped.
#[derive(Default)]
pub(crate) struct Xml(String);

impl Xml {
    /// Writes an element that holds text.
    pub(crate) fn text(&mut self, name: &str, text: impl Display) {
        self.element(name, |xml| {
            for character in text.to_string().chars() {
                match character {
                    '&' => xml.0.push_str("&amp;"),
                    '<' => xml.0.push_str("&lt;"),
                    '>' => xml.0.push_str("&gt;"),
                    // A reader turns a bare carriage return into a line feed.
                    '\r' => xml.0.push_str("&#13;"),
                    '\t' | '\n' => xml.0.push(character),
                    // XML 1.0 has no way to write the others, nor the two that are no characters.
                    '\0'..' ' | '\u{fffe}' | '\u{ffff}' => xml.0.push('\u{fffd}'),
                    _ => xml.0.push(character),
                }
            }
        });
    }

    /// Writes an element that holds text, if there is any.
    pub(crate) fn optional(&mut self, name: &str, text: Option<impl Display>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// Writes an element that holds elements.
    pub(crate) fn element(&mut self, name: &str, content: impl FnOnce(&mut Self)) {
        self.0.extend(["<", name, ">"]);
        content(self);
        self.0.extend(["</", name, ">"]);
    }

    /// Appends what was written elsewhere.
    pub(crate) fn append(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// Writes a whole document, whose root has this name and namespace.
    pub(crate) fn document(name: &str, namespace: Option<&str>, content: impl FnOnce(&mut Self)) -> String {
        let mut xml = Self("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned());
        match namespace {
            Some(namespace) => xml.0.extend(["<", name, " xmlns=\"", namespace, "\">"]),
            None => xml.0.extend(["<", name, ">"]),
        }
        content(&mut xml);
        xml.0.extend(["</", name, ">"]);
        xml.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out_of_its_element() {
        let document = Xml::document("Root", Some("urn:x"), |xml| {
            xml.text("A", "a<b>&c</A>\r\n\u{1}");
            xml.element("B", |xml| xml.optional("C", None::<&str>));
        });
        assert_eq!(
            document,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Root xmlns=\"urn:x\"><A>a&lt;b&gt;&amp;c&lt;/A&gt;&#13;\n\u{fffd}</A><B></B></Root>"
        );
    }
}
