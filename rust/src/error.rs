//! Every way a record or a body can be refused, each with a stable code.
//!
//! In: nothing. Out: `Code` (a record's rejection), `Fault` (code and place), `BodyFault` (a body that
//! can't be read further). Invariant: a code's slug never changes; it is a metric label and is stored
//! beside dead letters.

use thiserror::Error;

macro_rules! codes {
    ($($name:ident $slug:literal $meaning:literal)*) => {
        /// Why a record was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Code { $(#[doc = $meaning] $name,)* }

        impl Code {
            /// Every code there is, in the order of this list.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable slug.
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// One sentence of meaning.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

codes! {
    MalformedJson "malformed_json" "The text is no JSON, or ends too early."
    TrailingText "trailing_text" "Text follows the record's closing brace."
    InvalidUtf8 "invalid_utf8" "The record is no valid UTF-8."
    ControlCharacter "control_character" "A string holds a raw control character; JSON wants it escaped."
    LoneSurrogate "lone_surrogate" "A string escapes one half of a surrogate pair without the other."
    NoTypeTag "no_type_tag" "An attribute value is an object without a type tag."
    TwoTypeTags "two_type_tags" "An attribute value has more than one type tag."
    UnknownTypeTag "unknown_type_tag" "An attribute value's type tag is none of DynamoDB's ten."
    WrongKind "wrong_kind" "A type tag or an image holds the wrong kind of JSON value."
    UnquotedNumber "unquoted_number" "A number attribute is a bare JSON number; DynamoDB writes it as a string."
    InvalidNumber "invalid_number" "A number attribute's text is no decimal number."
    NumberPrecision "number_precision" "A number has more than 38 significant digits."
    NumberRange "number_range" "A number's magnitude lies outside 1E-130 to 9.99E+125 and it is not zero."
    InvalidBase64 "invalid_base64" "A binary attribute is no padded standard base64."
    TooDeep "too_deep" "Lists and maps are nested more than 32 levels deep (or unknown fields more than 128)."
    InvalidEnvelope "invalid_envelope" "The record is no object, or a field around its images has the wrong JSON kind."
    MissingEventName "missing_event_name" "The record has no eventName."
    UnknownEventName "unknown_event_name" "The eventName is none of INSERT, MODIFY and REMOVE."
    MissingKeys "missing_keys" "The record has no Keys."
    InvalidKey "invalid_key" "Keys doesn't hold one or two attributes of the types S, N and B."
    MissingCreationTime "missing_creation_time" "The record has no ApproximateCreationDateTime."
    InvalidCreationTime "invalid_creation_time" "ApproximateCreationDateTime is no number, or lies outside the years 1970 to 9999."
    UnknownPrecision "unknown_precision" "ApproximateCreationDateTimePrecision is neither MICROSECOND nor MILLISECOND."
    MissingSequenceNumber "missing_sequence_number" "A DynamoDB Streams record has no SequenceNumber."
    InvalidSequenceNumber "invalid_sequence_number" "The SequenceNumber is no text of 1 to 40 digits."
    KeyMismatch "key_mismatch" "The key attributes differ in name or type from those the table has."
    MissingNewImage "missing_new_image" "The change writes an item, but carries no new image."
    ProjectedKey "projected_key" "The projection would leave out, mask or hash an attribute of the key."
    RecordTooLarge "record_too_large" "The record is larger than its topic takes."
    KeyQuarantined "key_quarantined" "An earlier change of its key is in the dead letters, and order is kept there."
}

/// A code and the byte of the record where it was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub code: Code,
    /// Byte in the record, from 0.
    pub at: u32,
}

impl Fault {
    /// A fault at this byte.
    #[cold]
    pub const fn new(code: Code, at: usize) -> Self {
        Self { code, at: at as u32 }
    }

    /// What a person reads. It quotes nothing of the record: logs are no place for its data.
    pub fn message(self) -> String {
        let meaning = self.code.meaning().trim_end_matches('.');
        format!("{meaning} (byte {}).", self.at)
    }
}

/// Why a body of the service can't be read further.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BodyFault {
    /// The frame's length can't be right.
    #[error("a frame says it is {length} bytes long with {headers} bytes of headers; at most {max} are allowed")]
    Length {
        /// Total length, as the prelude says.
        length: u32,
        /// Length of the headers, as the prelude says.
        headers: u32,
        /// Allowed length.
        max: u64,
    },
    /// The first twelve bytes are damaged.
    #[error("the checksum of a frame's prelude doesn't match: the body is damaged")]
    PreludeChecksum,
    /// The frame is damaged.
    #[error("the checksum of a frame doesn't match: the body is damaged")]
    MessageChecksum,
    /// The headers can't be read.
    #[error("a frame's headers can't be read")]
    Headers,
    /// A header that every frame has is missing.
    #[error("a frame has no {0} header")]
    MissingHeader(&'static str),
    /// The JSON around the records can't be read.
    #[error("the JSON of a SubscribeToShardEvent can't be read at byte {0}")]
    Envelope(u32),
    /// The JSON of GetRecords can't be read.
    #[error("the JSON of a GetRecords answer can't be read at byte {0}")]
    Answer(u32),
}

impl BodyFault {
    /// The stable slug.
    pub const fn slug(&self) -> &'static str {
        match self {
            Self::Length { .. } => "frame_length",
            Self::PreludeChecksum => "prelude_checksum",
            Self::MessageChecksum => "message_checksum",
            Self::Headers => "frame_headers",
            Self::MissingHeader(_) => "missing_header",
            Self::Envelope(_) => "frame_envelope",
            Self::Answer(_) => "answer_envelope",
        }
    }
}
