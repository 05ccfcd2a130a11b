//! A table of the file while it is read: emptied key by key, so that what is left at the end is unknown.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Findings, Refusal, nearest, quoted};

/// A key, and how a line with it looks.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) example: &'static str,
}

impl Key {
    pub(super) const fn new(name: &'static str, example: &'static str) -> Self {
        Self { name, example }
    }
}

/// A table while it is read.
pub(super) struct Section<'t, 'f, 'p> {
    /// ``in `[tunnels.prod-db]` ``
    pub(super) place: String,
    /// Where the table begins, for what is missing in it.
    at: usize,
    pub(super) table: DeTable<'t>,
    /// The keys asked for so far; once the table is read, those it may have.
    known: Vec<&'static str>,
    /// Whether a key that is absent here is missing in the file.
    pub(super) complete: bool,
    pub(super) findings: &'f mut Findings<'p>,
}

impl<'t, 'f, 'p> Section<'t, 'f, 'p> {
    pub(super) fn new(place: &str, table: DeTable<'t>, at: usize, findings: &'f mut Findings<'p>) -> Self {
        let complete = !findings.any_broken();
        Self {
            place: place.to_owned(),
            at,
            table,
            known: Vec::new(),
            complete,
            findings,
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.table.remove(key)
    }

    pub(super) fn text(&mut self, key: &Key) -> Option<Spanned<String>> {
        self.read(key, "text", as_text)
    }

    pub(super) fn text_or_number(&mut self, key: &Key) -> Option<Spanned<String>> {
        self.read(key, "a number or text", |value| {
            if let DeValue::Integer(number) = &value {
                return Some(number.to_string());
            }
            as_text(value)
        })
    }

    /// Takes a whole number, as the text it is written in.
    pub(super) fn number(&mut self, key: &Key) -> Option<Spanned<String>> {
        self.read(key, "a whole number", |value| {
            if let DeValue::Integer(number) = &value {
                Some(number.to_string())
            } else {
                None
            }
        })
    }

    pub(super) fn flag(&mut self, key: &Key) -> Option<Spanned<bool>> {
        self.read(key, "true or false", |value| value.as_bool())
    }

    pub(super) fn table(&mut self, key: &Key) -> Option<Spanned<DeTable<'t>>> {
        self.read(key, "a table", |value| {
            if let DeValue::Table(table) = value {
                Some(table)
            } else {
                None
            }
        })
    }

    /// Takes the value of a key, or refuses it if it is not what is wanted.
    pub(super) fn read<T>(
        &mut self,
        key: &Key,
        wanted: &str,
        convert: impl FnOnce(DeValue<'t>) -> Option<T>,
    ) -> Option<Spanned<T>> {
        let value = self.take(key.name)?;
        let (span, found) = (value.span(), kind(value.get_ref()));
        let converted = convert(value.into_inner());
        if converted.is_none() {
            let message = format!("`{}` {} is {found}, not {wanted}", key.name, self.place);
            self.findings
                .push(span.start, Refusal::new(message).instead(key.example));
        }
        converted.map(|value| Spanned::new(span, value))
    }

    pub(super) fn required<T>(&mut self, key: &Key, read: fn(&mut Self, &Key) -> Option<T>) -> Option<T> {
        if !self.table.contains_key(key.name) {
            self.missing(key);
        }
        read(self, key)
    }

    pub(super) fn missing(&mut self, key: &Key) {
        self.lacks(&format!("`{}`", key.name), key.example);
    }

    /// Notes that none of these keys is there.
    pub(super) fn lacks(&mut self, keys: &str, example: &str) {
        if self.complete {
            let refusal = Refusal::new(format!("there is no {keys} {}", self.place)).instead(example);
            self.findings.push(self.at, refusal);
        }
    }

    /// Refuses a key for being there, if it is.
    pub(super) fn object(&mut self, key: &str, refusal: Refusal) {
        if let Some(value) = self.table.get(key) {
            self.findings.push(value.span().start, refusal);
        }
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn close(self) {
        for key in self.table.keys() {
            let unknown = format!("unknown key {} {}", quoted(key.get_ref()), self.place);
            let refusal = match nearest(key.get_ref(), &self.known) {
                Some(near) => Refusal::new(format!("{unknown}: did you mean `{near}`?")),
                None => Refusal::new(unknown).instead(format!("one of `{}`", self.known.join("`, `"))),
            };
            self.findings.push(key.span().start, refusal);
        }
    }
}

/// Returns the text of a value that is text.
pub(super) fn as_text(value: DeValue<'_>) -> Option<String> {
    if let DeValue::String(text) = value {
        Some(text.into_owned())
    } else {
        None
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
