//! What `schemas.codec` says of ordinary records. It reads only what is an event beyond doubt, and then the fields are
//! those that the codec gives; whatever else there is, refusals included, is left to the codec.

use xxhash_rust::xxh3::xxh3_64;

use crate::catalogue::{Catalogue, OwnField, RETRACTED, Reads};
use crate::json::{Scanner, Value};
use crate::log::Entry;
use crate::texts::Texts;
use crate::time::milliseconds_of;

/// The least whole number that is a time: smaller ones are seconds.
const FIRST_MS: i64 = 100_000_000_000;
const LARGEST: f64 = ((1i64 << 53) - 1) as f64;

#[derive(Default)]
struct Given<'a> {
    event_id: Value<'a>,
    lead_id: Value<'a>,
    call_id: Value<'a>,
    campaign: Value<'a>,
    source: Value<'a>,
    team: Value<'a>,
    agent: Value<'a>,
    location: Value<'a>,
    kind: Value<'a>,
    occurred_at: Value<'a>,
    schema_version: Value<'a>,
    /// Fields that only some types have: the places of their names in the catalogue, and their values.
    own: [(u8, Value<'a>); MOST_GIVEN],
    size: usize,
}

/// A record with more fields that only some types have is left to the codec.
const MOST_GIVEN: usize = 8;

impl<'a> Given<'a> {
    fn own(&self, field: &OwnField) -> Value<'a> {
        let its = |(place, _): &&(u8, Value)| *place == field.given_as;
        self.own[..self.size].iter().rfind(its).map_or(Value::None, |&(_, value)| value)
    }
}

/// The lead's id and the entry. None where the codec has to be asked what the record says. Whether its time and its
/// key are right is not looked at.
pub fn read<'a>(json: &'a [u8], catalogue: &Catalogue, texts: &mut Texts) -> Option<(&'a [u8], Entry)> {
    let given = given(json, catalogue)?;
    let rank = catalogue.rank(given.kind.text())?;
    let event_id = given.event_id.event_id()?;
    let lead_id = given.lead_id.label()?;
    let call_id = given.call_id.label()?;
    if event_id.is_empty() || lead_id.is_empty() {
        return None;
    }
    let dimensions = [
        given.campaign.label()?,
        given.source.label()?,
        given.location.label()?,
        given.team.label()?,
        given.agent.label()?,
    ];
    if !matches!(given.schema_version, Value::None | Value::Number { unscaled: 1, decimals: 0 }) {
        return None;
    }
    let at_ms = match given.occurred_at {
        Value::Text { text, .. } => milliseconds_of(text)?,
        Value::Number { unscaled: unscaled @ FIRST_MS.., decimals: 0 } => unscaled,
        _ => return None,
    };

    let call = (!call_id.is_empty()).then(|| xxh3_64(call_id));
    let mut entry = Entry::new(at_ms, rank, xxh3_64(event_id), call);
    for (place, field) in catalogue.fields[usize::from(rank)].iter().enumerate() {
        let value = own(given.own(field), &field.reads, texts)?;
        if value.is_none() && field.is_required {
            return None;
        }
        entry.set_own(place, value);
    }
    if rank == RETRACTED {
        let (id, kind) = (entry.own(0), entry.own(1));
        if id == Some(entry.mark as i64) || (id, kind) == (None, None) {
            return None;
        }
    }
    entry.dimensions = dimensions.map(|value| texts.optional(value));
    Some((lead_id, entry))
}

/// The known fields; of a repeated name the last value counts.
#[inline]
fn given<'a>(json: &'a [u8], catalogue: &Catalogue) -> Option<Given<'a>> {
    let mut given = Given::default();
    let mut from = Scanner::new(json);
    from.token(b'{')?;
    loop {
        let name = from.text()?;
        from.token(b':')?;
        let value = from.value()?;
        match name.text() {
            b"event_id" => given.event_id = value,
            b"lead_id" => given.lead_id = value,
            b"call_id" => given.call_id = value,
            b"campaign" => given.campaign = value,
            b"source" => given.source = value,
            b"team" => given.team = value,
            b"agent" => given.agent = value,
            b"location" => given.location = value,
            b"type" => given.kind = value,
            b"occurred_at" => given.occurred_at = value,
            b"schema_version" => given.schema_version = value,
            name => {
                if let Some(place) = catalogue.given_as(name) {
                    *given.own.get_mut(given.size)? = (place, value);
                    given.size += 1;
                }
            }
        }
        if from.token(b',').is_none() {
            break;
        }
    }
    from.token(b'}')?;
    from.end()?;
    Some(given)
}

/// The outer None: it has another value.
fn own(value: Value, reads: &Reads, texts: &mut Texts) -> Option<Option<i64>> {
    match (reads, value) {
        (_, Value::None) => Some(None),
        (Reads::Choice(choices, unsaid), Value::Text { text, .. }) => {
            match choices.iter().position(|choice| choice == text) {
                None => (!text.is_empty() && unsaid == text).then_some(None),
                place => Some(place.map(|place| place as i64)),
            }
        }
        (Reads::Flag, Value::Boolean(is_set)) => Some(is_set.then_some(1)),
        (Reads::Mark, value) => {
            let id = value.event_id()?;
            Some((!id.is_empty()).then(|| xxh3_64(id) as i64))
        }
        (Reads::Text, value) => {
            let text = value.label()?;
            Some((!text.is_empty()).then(|| texts.number_of(text).into()))
        }
        (Reads::Seconds, Value::Number { unscaled, decimals }) => {
            let scale = (0..decimals).fold(1.0, |scale, _| scale * 10.0);
            Some(Some(whole_ms(unscaled as f64 / scale)))
        }
        _ => None,
    }
}

/// Rounded down as the number is written: 16.06 s are 16,060 ms, and the product of the floats is less.
fn whole_ms(seconds: f64) -> i64 {
    let ms = (seconds * 1000.0).floor().min(LARGEST);
    if (ms + 1.0) / 1000.0 <= seconds && ms < LARGEST {
        ms as i64 + 1
    } else if ms / 1000.0 > seconds {
        ms as i64 - 1
    } else {
        ms as i64
    }
}
