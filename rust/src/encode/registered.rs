//! Values of Kafka's records: JSON, or what is written by a schema of a registry.
//!
//! In: changes. Out: one value a change. A value by a schema stands behind five bytes, 0 and the schema's number:
//! <https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>.

use std::sync::Arc;

use crate::change::{ChangeBatch, View};
use crate::columns::Plan;
use crate::encode::avro::Avro;
use crate::encode::json::Form;
use crate::encode::planned::Planned;
use crate::record::Event;
use crate::value::Notes;

const MAGIC: u8 = 0;

/// How the values behind a schema's number are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Avro's binary form.
    Avro,
    /// JSON text, by a JSON Schema.
    Json,
}

/// A schema of a registry.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Its number there.
    pub id: u32,
    /// How values are written.
    pub format: Format,
    /// They are whole changes; else new images alone, and a delete has none.
    pub is_change: bool,
    /// The columns of the items.
    pub plan: Arc<Plan>,
}

/// Writes values; its buffers serve a whole batch.
#[derive(Debug)]
pub struct Values<'a> {
    form: Form,
    notes: Notes,
    by: Option<(&'a Schema, Writer<'a>)>,
}

#[derive(Debug)]
enum Writer<'a> {
    Avro(Avro<'a>),
    Json(Planned<'a>),
}

impl<'a> Values<'a> {
    /// By the schema; without one, as JSON of this form.
    pub fn new(form: Form, schema: Option<&'a Schema>) -> Self {
        let writer = |schema: &'a Schema| match schema.format {
            Format::Avro => Writer::Avro(Avro::new(&schema.plan)),
            Format::Json => Writer::Json(Planned::new(&schema.plan)),
        };
        Self { form, notes: Notes::default(), by: schema.map(|schema| (schema, writer(schema))) }
    }

    /// Appends one change's value; false when it has none.
    #[inline]
    pub fn write(&mut self, out: &mut Vec<u8>, batch: &ChangeBatch, view: View<'_>) -> bool {
        let Some((schema, writer)) = &mut self.by else {
            self.form.write(out, &mut self.notes, batch, view);
            return true;
        };
        if !schema.is_change && view.change.event == Event::Remove {
            return false;
        }
        out.push(MAGIC);
        out.extend_from_slice(&schema.id.to_be_bytes());
        let new = view.raw(view.change.new);
        match writer {
            Writer::Avro(avro) if schema.is_change => avro.write_change(view, batch, out),
            Writer::Avro(avro) => avro.write_item(new, out),
            Writer::Json(json) if schema.is_change => json.write_change(view, batch, out),
            Writer::Json(json) => json.write_item(new, out),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change;
    use crate::columns::tests::plan;
    use crate::document;

    const LINES: &str = concat!(
        r#"{"eventID":"1","eventName":"INSERT","tableName":"t","dynamodb":{"ApproximateCreationDateTime":7,"#,
        r#""ApproximateCreationDateTimePrecision":"MICROSECOND","Keys":{"id":{"S":"k"}},"#,
        r#""NewImage":{"id":{"S":"k"},"n":{"N":"-1.50"},"s":{"SS":["b","a"]}}}}"#,
        "\n",
        r#"{"eventID":"2","eventName":"REMOVE","tableName":"t","dynamodb":{"ApproximateCreationDateTime":8,"#,
        r#""ApproximateCreationDateTimePrecision":"MICROSECOND","Keys":{"id":{"S":"k"}}}}"#
    );

    fn written(format: Format, is_change: bool) -> Vec<Option<String>> {
        let batch = change::decode(Arc::new(document::read(LINES.as_bytes()).unwrap()), None, false);
        let plan = Arc::new(plan(&[("n", "numeric"), ("id", "text")], Some("extra")));
        let schema = Schema { id: 0x0102_0304, format, is_change, plan };
        let mut values = Values::new(Form::Plain, Some(&schema));
        let value = |view| {
            let mut out = Vec::new();
            values.write(&mut out, &batch, view).then(|| {
                assert_eq!(out[..5], [0, 1, 2, 3, 4]);
                String::from_utf8(out[5..].to_vec()).unwrap()
            })
        };
        batch.views().map(value).collect()
    }

    #[test]
    fn five_bytes_stand_before_a_value() {
        let item = "{\"n\":-1.50,\"id\":\"k\",\"extra\":{\"s\":[\"a\",\"b\"]}}";
        assert_eq!(written(Format::Json, false), [Some(item.to_owned()), None]);
        assert_eq!(
            written(Format::Avro, false),
            [Some("\x02\n-1.50\x02\x02k\x1e{\"s\":[\"a\",\"b\"]}".to_owned()), None]
        );
    }

    #[test]
    fn a_delete_is_a_change_without_an_item() {
        let delete = "{\"table\":\"t\",\"event\":\"REMOVE\",\"key\":{\"id\":\"k\"},\"version\":\"8\",\"item\":null,\"old\":null}";
        assert_eq!(written(Format::Json, true)[1].as_deref(), Some(delete));
        assert_eq!(written(Format::Avro, true)[1].as_deref(), Some("\x02\x02t\x04\x14{\"id\":\"k\"}\x028\0\0\0"));
    }
}
