//! A transition in words: what happened, as a person would tell it.

use tunneld_proto::v1::Transition;

/// Says what a transition was; `before` is the one that it followed.
pub(crate) fn said(before: Option<&Transition>, transition: &Transition) -> String {
    let Transition { state, reason, .. } = transition;
    if reason.is_empty() {
        return state.clone();
    }
    match (before.map(|before| before.state.as_str()), state.as_str()) {
        // How it came to be up again says that it is.
        (_, "up") => reason.clone(),
        (Some("up"), "waiting" | "idle") => format!("lost: {reason}"),
        (_, _) => format!("{state}: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transition(state: &str, reason: &str) -> Transition {
        Transition {
            state: state.to_owned(),
            reason: reason.to_owned(),
            ..Transition::default()
        }
    }

    #[test]
    fn a_night_reads_as_it_went() {
        let night = [
            transition("connecting", ""),
            transition("waiting", "no route to host"),
            transition("up", ""),
            transition("waiting", "websocket closed 1000 Bye"),
            transition("up", "resumed, no connection lost"),
            transition("blocked", "the login expired"),
            transition("down", ""),
        ];
        let mut before = None;
        let mut told = Vec::new();
        for transition in &night {
            told.push(said(before, transition));
            before = Some(transition);
        }
        assert_eq!(
            told,
            [
                "connecting",
                "waiting: no route to host",
                "up",
                "lost: websocket closed 1000 Bye",
                "resumed, no connection lost",
                "blocked: the login expired",
                "down",
            ]
        );
    }
}
