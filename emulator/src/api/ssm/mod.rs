//! SSM: sessions, and the inventory of instances that have an agent.

mod inventory;
mod sessions;

use serde_json::{Value, json};

use super::json::{epoch, input};
use super::{Call, Refusal, page, unknown_operation};

pub(super) fn answer(call: &Call<'_>, operation: &str, body: &[u8]) -> Result<Value, Refusal> {
    match operation {
        "StartSession" => sessions::start(call, input(body)?),
        "ResumeSession" => sessions::resume(call, &input(body)?),
        "TerminateSession" => sessions::terminate(call, &input(body)?),
        "DescribeSessions" => sessions::describe(call, input(body)?),
        "DescribeInstanceInformation" => inventory::describe(call, input(body)?),
        _ => Err(unknown_operation()),
    }
}

fn required(value: Option<String>, name: &str) -> Result<String, Refusal> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| {
        Refusal::new(
            "ValidationException",
            format!(
                "1 validation error detected: Value null at '{name}' failed to satisfy constraint: Member must not \
                 be null"
            ),
        )
    })
}

fn invalid(name: &str, value: &str, allowed: &str) -> Refusal {
    Refusal::new(
        "ValidationException",
        format!(
            "1 validation error detected: Value '{value}' at '{name}' failed to satisfy constraint: Member must \
             satisfy enum value set: {allowed}"
        ),
    )
}

fn range(value: Option<usize>, name: &str, least: usize, most: usize) -> Result<Option<usize>, Refusal> {
    let (bound, word) = match value {
        Some(value) if value < least => (least, "greater"),
        Some(value) if value > most => (most, "less"),
        value => return Ok(value),
    };
    Err(Refusal::new(
        "ValidationException",
        format!(
            "1 validation error detected: Value '{}' at '{name}' failed to satisfy constraint: Member must have \
             value {word} than or equal to {bound}",
            value.unwrap_or_default()
        ),
    ))
}

/// Returns whether all filters fit; a filter that cannot be judged refuses the call.
fn every<F>(filters: &[F], mut fits: impl FnMut(&F) -> Result<bool, Refusal>) -> Result<bool, Refusal> {
    let mut all = true;
    for filter in filters {
        all &= fits(filter)?;
    }
    Ok(all)
}

/// Returns one page of a list, under the name that the operation gives it.
fn paged(
    call: &Call<'_>,
    name: &str,
    found: Vec<Value>,
    token: Option<&str>,
    asked: Option<usize>,
    default: usize,
) -> Result<Value, Refusal> {
    let (items, next) = page(found, token, call.page_length(asked, default))
        .map_err(|_| Refusal::new("InvalidNextToken", "The specified token is not valid."))?;
    let mut value = json!({ name: items });
    if let Some(next) = next {
        value["NextToken"] = json!(next);
    }
    Ok(value)
}
