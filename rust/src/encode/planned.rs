//! Changes as JSON by a column plan: closed objects, which a JSON Schema can describe and still grow.
//!
//! In: changes and a plan. Out: the members of `json::Form::Plain`, but items have a member for each column whose value
//! fits, and all others in one member, the plan's rest. Invariant: a value is valid by the schema that
//! `core/schemas.py` writes of the same plan.

use crate::change::{ChangeBatch, View};
use crate::columns::Plan;
use crate::encode::json::{Form, write_string};
use crate::split::{Split, Value};
use crate::value::{self, Notes};

/// Writes changes by a plan; its buffers serve a whole batch.
#[derive(Debug)]
pub struct Planned<'p> {
    split: Split<'p>,
    notes: Notes,
    /// Of the columns, then of the rest, as they stand in an object.
    names: Vec<Vec<u8>>,
}

impl<'p> Planned<'p> {
    /// By this plan.
    pub fn new(plan: &'p Plan) -> Self {
        let member = |name: &str| {
            let mut out = Vec::new();
            write_string(&mut out, name.as_bytes());
            out.push(b':');
            out
        };
        let columns = plan.columns().iter().map(|column| member(&column.attribute));
        let names = columns.chain(plan.rest().map(member)).collect();
        Self { split: Split::new(plan), notes: Notes::default(), names }
    }

    /// Appends one whole change.
    pub fn write_change(&mut self, view: View<'_>, batch: &ChangeBatch, out: &mut Vec<u8>) {
        let change = view.change;
        out.extend_from_slice(b"{\"table\":");
        match batch.tables.get(view.table as usize) {
            Some(name) => write_string(out, name.as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"event\":\"");
        out.extend_from_slice(change.event.name().as_bytes());
        out.extend_from_slice(b"\",\"key\":");
        Form::Plain.write_key(out, view);
        out.extend_from_slice(b",\"version\":\"");
        change.version.write(out);
        out.push(b'"');
        for (name, span) in [(&b",\"item\":"[..], change.new), (b",\"old\":", change.old)] {
            out.extend_from_slice(name);
            match view.raw(span) {
                [] => out.extend_from_slice(b"null"),
                image => self.write_item(image, out),
            }
        }
        if view.late {
            out.extend_from_slice(b",\"late\":true");
        }
        out.push(b'}');
    }

    /// Appends one item, raw.
    pub fn write_item(&mut self, image: &[u8], out: &mut Vec<u8>) {
        self.split.read(image, |_| false);
        let mut open = b'{';
        for (column, (value, name)) in self.split.values().iter().zip(&self.names).enumerate() {
            if *value != Value::Absent {
                out.push(open);
                open = b',';
                out.extend_from_slice(name);
                let (start, end) = self.split.span(column);
                value::append_plain(image, start, end, &mut self.notes, out);
            }
        }
        if let Some(name) = self.names.get(self.split.values().len())
            && self.split.rest() != b"{}"
        {
            out.push(open);
            open = b',';
            out.extend_from_slice(name);
            out.extend_from_slice(self.split.rest());
        }
        if open == b'{' {
            out.push(open);
        }
        out.push(b'}');
    }
}
