//! The parameters of a Query request.

use std::collections::BTreeMap;

/// The decoded form of a POST body, such as `Action=DescribeInstances&Version=2016-11-15&InstanceId.1=i-1`.
#[derive(Debug, Default)]
pub(crate) struct Form(BTreeMap<String, String>);

/// A filter: a name, and the values of which one has to fit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: Vec<&'a str>,
}

impl Form {
    pub(crate) fn parse(body: &[u8]) -> Self {
        Self(url::form_urlencoded::parse(body).into_owned().collect())
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns `PREFIX.1`, `PREFIX.2`, … in the order of their numbers.
    pub(crate) fn list(&self, prefix: &str) -> Vec<&str> {
        let numbered = self.0.iter().filter_map(|(key, value)| {
            let number: u32 = key.strip_prefix(prefix)?.strip_prefix('.')?.parse().ok()?;
            Some((number, value.as_str()))
        });
        let in_order: BTreeMap<u32, &str> = numbered.collect();
        in_order.into_values().collect()
    }

    /// Returns the filters `PREFIX.N.Name` with their `PREFIX.N.VALUES.M`.
    pub(crate) fn filters(&self, prefix: &str, values: &str) -> Vec<Filter<'_>> {
        let named = self.0.iter().filter_map(|(key, name)| {
            let number: u32 = key
                .strip_prefix(prefix)?
                .strip_prefix('.')?
                .strip_suffix(".Name")?
                .parse()
                .ok()?;
            Some((number, name.as_str()))
        });
        named
            .map(|(number, name)| Filter {
                name,
                values: self.list(&format!("{prefix}.{number}.{values}")),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ordered_by_number_not_by_text() {
        let form =
            Form::parse(b"InstanceId.10=c&InstanceId.2=b&InstanceId.1=a&InstanceId.x=z&InstanceIdX.1=z");
        assert_eq!(form.list("InstanceId"), ["a", "b", "c"]);
    }

    #[test]
    fn filters_hold_their_own_values() {
        let form = Form::parse(
            b"Filter.1.Name=tag%3AName&Filter.1.Value.1=bastion&Filter.1.Value.2=b+2\
              &Filter.2.Name=instance-state-name&Filter.2.Value.1=running",
        );
        assert_eq!(
            form.filters("Filter", "Value"),
            [
                Filter {
                    name: "tag:Name",
                    values: vec!["bastion", "b 2"]
                },
                Filter {
                    name: "instance-state-name",
                    values: vec!["running"]
                },
            ]
        );
    }
}
