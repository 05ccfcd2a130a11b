//! Names that could have been meant by one that nothing has.

/// How alike a name must be to a mistyped one to be suggested (Jaro-Winkler; swapped or missing letters are above).
const ALIKE: f64 = 0.8;

/// How many names are suggested: more is no help.
const SUGGESTIONS: usize = 3;

/// Returns the names that could have been meant, the most alike first.
pub(crate) fn near<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Vec<String> {
    let mut alike: Vec<_> = known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    alike.sort_by(|(left, _), (right, _)| right.total_cmp(left));
    alike
        .into_iter()
        .take(SUGGESTIONS)
        .map(|(_, candidate)| candidate.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_first_and_strangers_do_not() {
        let known = ["prod-db", "prod-db-2", "stage-db", "billing"];
        assert_eq!(near("prod-bd", known.into_iter()), ["prod-db", "prod-db-2"]);
        assert_eq!(near("zzz", known.into_iter()), Vec::<String>::new());
    }
}
