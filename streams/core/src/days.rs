//! The days of the floor's time zone, which only Python knows.

use hashbrown::HashMap;
use pyo3::prelude::*;

/// More are asked for again: a replay of centuries must not fill the memory.
const MOST_KNOWN: usize = 65_536;

pub struct Days {
    day_of: Py<PyAny>,
    /// The starts of days by minutes in them, in Unix seconds. Not ranges: where clocks are put back a minute after
    /// midnight, the day before goes on.
    known: HashMap<i64, i64>,
}

impl Days {
    pub fn new(day_of: Py<PyAny>) -> Self {
        Days { day_of, known: HashMap::new() }
    }

    pub fn start_of(&mut self, minute_s: i64) -> PyResult<i64> {
        if let Some(&start) = self.known.get(&minute_s) {
            return Ok(start);
        }
        let start = Python::attach(|py| self.day_of.call1(py, (minute_s,))?.extract(py))?;
        if self.known.len() == MOST_KNOWN {
            self.known.clear();
        }
        self.known.insert(minute_s, start);
        Ok(start)
    }
}
