//! Readings as Parquet: one row a measurement, or one for a reading that is no measurement.
//!
//! Columns: `epoch`, `seq` int64; `time` timestamp µs UTC; `topic`; `name`, `value` double, `text`, `bool`, `unit`,
//! `payload` binary, each null where there is none. `payload` holds what could not be read as measurements, and binary
//! values. Rows are sorted by topic and seq; the same readings at the same times give the same bytes.

use std::{io, sync::Arc};

use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        reader::{FileReader, SerializedFileReader},
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    record::RowAccessor,
    schema::{parser::parse_message_type, types::ColumnPath},
};

use crate::{
    decode::{self, Value},
    reading::Reading,
};

const SCHEMA: &str = "message readings {
    required int64 epoch;
    required int64 seq;
    required int64 time (timestamp(micros, true));
    required binary topic (string);
    optional binary name (string);
    optional double value;
    optional binary text (string);
    optional boolean bool;
    optional binary unit (string);
    optional binary payload;
}";

/// One row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// The store's epoch.
    pub epoch: i64,
    /// The reading's number.
    pub seq: i64,
    /// µs since 1970 UTC.
    pub time_us: i64,
    /// Topic.
    pub topic: String,
    /// Name of the measurement.
    pub name: Option<String>,
    /// A number.
    pub value: Option<f64>,
    /// A text.
    pub text: Option<String>,
    /// A truth value.
    pub bool: Option<bool>,
    /// Unit.
    pub unit: Option<String>,
    /// Bytes.
    pub payload: Option<Vec<u8>>,
}

/// The rows of one reading at its corrected time.
pub fn rows(epoch: u64, reading: &Reading, time_us: i64) -> Vec<Row> {
    let bare = Row {
        epoch: i64::try_from(epoch).unwrap_or(i64::MAX),
        seq: i64::try_from(reading.seq).unwrap_or(i64::MAX),
        time_us,
        topic: reading.topic.clone(),
        ..Row::default()
    };
    let measurements = decode::measurements(&reading.payload, time_us);
    if measurements.is_empty() {
        return vec![Row { payload: Some(reading.payload.to_vec()), ..bare }];
    }
    let row = |it: decode::Measurement| {
        let mut row = Row { time_us: it.time_us.unwrap_or(time_us), unit: it.unit, ..bare.clone() };
        row.name = (!it.name.is_empty()).then_some(it.name);
        match it.value {
            Some(Value::Number(number)) => row.value = Some(number),
            Some(Value::Text(text)) => row.text = Some(text),
            Some(Value::Bool(truth)) => row.bool = Some(truth),
            Some(Value::Data(data)) => row.payload = Some(data),
            None => {}
        }
        row
    };
    measurements.into_iter().map(row).collect()
}

/// A Parquet file of these rows, sorted by topic and seq (rows of one reading keep their order).
pub fn encode(rows: Vec<Row>) -> Result<Vec<u8>, ParquetError> {
    let mut writer = Writer::new(Vec::new())?;
    writer.group(rows)?;
    writer.finish()
}

/// Writes a Parquet file of any length, a group of rows at a time.
pub struct Writer<W: io::Write + Send>(SerializedFileWriter<W>);

impl<W: io::Write + Send> Writer<W> {
    /// Begins a file.
    pub fn new(sink: W) -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let delta = |builder: parquet::file::properties::WriterPropertiesBuilder, name: &str| {
            let column = ColumnPath::from(name);
            builder
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
        };
        let builder = WriterProperties::builder()
            .set_created_by(format!("edge-agent {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?));
        let properties = ["seq", "time"].into_iter().fold(builder, delta).build();
        SerializedFileWriter::new(sink, schema, Arc::new(properties)).map(Self)
    }

    /// Writes a group of rows, sorted by topic and seq.
    pub fn group(&mut self, mut rows: Vec<Row>) -> Result<(), ParquetError> {
        rows.sort_by(|a, b| (&a.topic, a.seq).cmp(&(&b.topic, b.seq)));
        let mut group = self.0.next_row_group()?;
        for column in COLUMNS {
            if let Some(mut writer) = group.next_column()? {
                column(&mut writer, &rows)?;
                writer.close()?;
            }
        }
        group.close().map(drop)
    }

    /// Ends the file.
    pub fn finish(self) -> Result<W, ParquetError> {
        self.0.into_inner()
    }
}

type Column = fn(&mut SerializedColumnWriter<'_>, &[Row]) -> Result<(), ParquetError>;

/// The columns, in the order of the schema.
const COLUMNS: [Column; 10] = [
    |column, rows| ints(column, rows, |row| row.epoch),
    |column, rows| ints(column, rows, |row| row.seq),
    |column, rows| ints(column, rows, |row| row.time_us),
    |column, rows| {
        let values: Vec<_> = rows.iter().map(|row| ByteArray::from(row.topic.as_str())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).map(drop)
    },
    |column, rows| strings(column, rows, |row| row.name.as_deref().map(str::as_bytes)),
    |column, rows| {
        let values: Vec<_> = rows.iter().filter_map(|row| row.value).collect();
        let levels = levels(rows, |row| row.value.is_some());
        column.typed::<DoubleType>().write_batch(&values, Some(&levels), None).map(drop)
    },
    |column, rows| strings(column, rows, |row| row.text.as_deref().map(str::as_bytes)),
    |column, rows| {
        let values: Vec<_> = rows.iter().filter_map(|row| row.bool).collect();
        let levels = levels(rows, |row| row.bool.is_some());
        column.typed::<BoolType>().write_batch(&values, Some(&levels), None).map(drop)
    },
    |column, rows| strings(column, rows, |row| row.unit.as_deref().map(str::as_bytes)),
    |column, rows| strings(column, rows, |row| row.payload.as_deref()),
];

fn ints(column: &mut SerializedColumnWriter<'_>, rows: &[Row], get: fn(&Row) -> i64) -> Result<(), ParquetError> {
    let values: Vec<_> = rows.iter().map(get).collect();
    column.typed::<Int64Type>().write_batch(&values, None, None).map(drop)
}

fn strings(
    column: &mut SerializedColumnWriter<'_>,
    rows: &[Row],
    get: fn(&Row) -> Option<&[u8]>,
) -> Result<(), ParquetError> {
    let values: Vec<_> = rows.iter().filter_map(get).map(|bytes| ByteArray::from(bytes.to_vec())).collect();
    let levels = levels(rows, |row| get(row).is_some());
    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).map(drop)
}

fn levels(rows: &[Row], has: impl Fn(&Row) -> bool) -> Vec<i16> {
    rows.iter().map(|row| i16::from(has(row))).collect()
}

/// Reads such a file back: for `demo` and the tests.
pub fn decode(file: Vec<u8>) -> Result<Vec<Row>, ParquetError> {
    let reader = SerializedFileReader::new(bytes::Bytes::from(file))?;
    let rows = reader.get_row_iter(None)?.map(|row| {
        let row = row?;
        Ok(Row {
            epoch: row.get_long(0)?,
            seq: row.get_long(1)?,
            time_us: row.get_timestamp_micros(2)?,
            topic: row.get_string(3)?.clone(),
            name: row.get_string(4).ok().cloned(),
            value: row.get_double(5).ok(),
            text: row.get_string(6).ok().cloned(),
            bool: row.get_bool(7).ok(),
            unit: row.get_string(8).ok().cloned(),
            payload: row.get_bytes(9).ok().map(|bytes| bytes.data().to_vec()),
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seq: u64, topic: &str, payload: &str) -> Reading {
        let stamp = board::clock::Stamp { wall_us: 5, boot: 1, uptime_us: 5, trusted: true };
        Reading { seq, stamp, topic: topic.into(), payload: payload.to_owned().into() }
    }

    #[test]
    fn every_kind_of_value_comes_back_sorted_and_the_bytes_repeat() {
        let readings = [
            reading(1, "b", "21.5"),
            reading(
                2,
                "a",
                r#"[{"n":"t","u":"Cel","v":3},{"n":"s","vs":"x"},{"n":"o","vb":true},{"n":"d","vd":"aGk"}]"#,
            ),
            reading(3, "a", "not a measurement"),
        ];
        let all: Vec<_> = readings.iter().flat_map(|reading| rows(7, reading, 1_000)).collect();
        let bytes = encode(all.clone()).unwrap();
        assert_eq!(bytes, encode(all).unwrap());
        let back = decode(bytes).unwrap();
        assert_eq!(back.iter().map(|row| row.seq).collect::<Vec<_>>(), [2, 2, 2, 2, 3, 1]);
        assert_eq!(
            (back[0].value, back[0].unit.as_deref(), back[0].name.as_deref()),
            (Some(3.0), Some("Cel"), Some("t"))
        );
        assert_eq!(back[1].text.as_deref(), Some("x"));
        assert_eq!(back[2].bool, Some(true));
        assert_eq!(back[3].payload.as_deref(), Some(&b"hi"[..]));
        assert_eq!(back[4].payload.as_deref(), Some(&b"not a measurement"[..]));
        assert_eq!((back[5].value, back[5].time_us, back[5].epoch), (Some(21.5), 1_000, 7));
    }
}
