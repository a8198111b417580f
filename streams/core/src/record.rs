//! What `schemas.codec` says of ordinary records. It reads only what is an event beyond doubt, and then the fields are
//! those that the codec gives; whatever else there is, refusals included, is left to the codec.

use xxhash_rust::xxh3::xxh3_64;

use crate::catalogue::{CALL_ENDED, CONNECT, Catalogue, DISQUALIFIED, LOST, QUALIFIED, WON};
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
    reason: Value<'a>,
    kind: Value<'a>,
    occurred_at: Value<'a>,
    schema_version: Value<'a>,
    answered_by: Value<'a>,
    talk_seconds: Value<'a>,
    hangup_by: Value<'a>,
    amount: Value<'a>,
    expected_amount: Value<'a>,
    currency: Value<'a>,
}

impl Given<'_> {
    fn has_money(&self) -> bool {
        !(self.amount.is_none() && self.expected_amount.is_none() && self.currency.is_none())
    }
}

/// The lead's id and the entry. None where the codec has to be asked what the record says. Whether its time and its
/// key are right is not looked at.
pub fn read<'a>(json: &'a [u8], catalogue: &Catalogue, texts: &mut Texts) -> Option<(&'a [u8], Entry)> {
    let given = given(json)?;
    let rank = catalogue.readable(given.kind.text())?;
    let event_id = given.event_id.label()?;
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
    match rank {
        CONNECT => entry.set_own(0, choice(given.answered_by, &[b"human", b"machine"])?),
        // Sums of money are the codec's.
        QUALIFIED | WON if given.has_money() => return None,
        CALL_ENDED => {
            entry.set_own(0, talk_ms(given.talk_seconds)?);
            entry.set_own(1, choice(given.hangup_by, &[b"customer", b"agent", b"system"])?);
        }
        DISQUALIFIED | LOST => {
            let reason = given.reason.label()?;
            entry.set_own(0, (!reason.is_empty()).then(|| texts.number_of(reason).into()));
        }
        _ => {}
    }
    entry.dimensions = dimensions.map(|value| texts.optional(value));
    Some((lead_id, entry))
}

/// The known fields; of a repeated name the last value counts.
#[inline]
fn given(json: &[u8]) -> Option<Given<'_>> {
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
            b"reason" => given.reason = value,
            b"type" => given.kind = value,
            b"occurred_at" => given.occurred_at = value,
            b"schema_version" => given.schema_version = value,
            b"answered_by" => given.answered_by = value,
            b"talk_seconds" => given.talk_seconds = value,
            b"hangup_by" => given.hangup_by = value,
            b"amount" => given.amount = value,
            b"expected_amount" => given.expected_amount = value,
            b"currency" => given.currency = value,
            _ => {}
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
fn choice(value: Value, choices: &[&[u8]]) -> Option<Option<i64>> {
    match value {
        Value::None => Some(None),
        Value::Text { text, .. } => choices.iter().position(|choice| *choice == text).map(|place| Some(place as i64)),
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

fn talk_ms(seconds: Value) -> Option<Option<i64>> {
    match seconds {
        Value::None => Some(None),
        Value::Number { unscaled, decimals } => {
            let scale = (0..decimals).fold(1.0, |scale, _| scale * 10.0);
            Some(Some(whole_ms(unscaled as f64 / scale)))
        }
        _ => None,
    }
}
