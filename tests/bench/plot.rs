//! The plot of how the cost grows, as SVG: three figures, over connections and over message size.

use crate::machine::Machine;
use crate::results::Results;

pub fn growth(_results: &Results, _machine: &Machine) -> String {
    String::new()
}
