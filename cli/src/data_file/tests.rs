//! Tests of reading files.

use aubade_environment::FileSystem;
use aubade_environment::MemoryFiles;

use super::*;

const WITH_HEADER: CsvOptions = CsvOptions { header: true, delimiter: b',' };
const WITHOUT_HEADER: CsvOptions = CsvOptions { header: false, delimiter: b'|' };

fn environment(files: &[(&str, &[u8])]) -> Environment {
    let memory = MemoryFiles::default();
    memory.create_dir_all(Path::new("/d")).unwrap();
    for (name, bytes) in files {
        let mut file = memory.create_new(Path::new(name)).unwrap();
        file.write_all(bytes).unwrap();
        file.sync().unwrap();
    }
    Environment::system().with_files(Arc::new(memory))
}

async fn read(file: DataFile, table: &SchemaRef) -> Result<String> {
    let batches: Vec<RecordBatch> = file.read(Arc::clone(table), ProgressBar::hidden()).try_collect().await?;
    Ok(arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string())
}

fn parquet_bytes() -> Vec<u8> {
    let ids = Arc::new(arrow::array::Int32Array::from((0..1000).collect::<Vec<i32>>())) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[tokio::test]
async fn csv_types_fit_all_values() {
    let environment = environment(&[("/d/a.csv", b"id,x,day,s,e\n1,2,2024-01-02,a,\n2,2.5,2024-01-03,,\n")]);
    let file = DataFile::open(&environment, Path::new("/d/a.csv"), None, WITH_HEADER).await.unwrap();
    let types: Vec<String> = file.schema.fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(types, ["Int64", "Float64", "Date32", "Utf8", "Null"]);
    let table = common_schema(std::slice::from_ref(&file)).unwrap();
    let text = read(file, &table).await.unwrap();
    assert!(text.contains("| 2  | 2.5 | 2024-01-03 |"), "{text}");
}

#[tokio::test]
async fn columns_are_found_by_name_and_cast() {
    let environment = environment(&[("/d/a.csv", b"B,a\n1,2\n")]);
    let file = DataFile::open(&environment, Path::new("/d/a.csv"), None, WITH_HEADER).await.unwrap();
    let table: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("a", DataType::Decimal128(10, 2), true),
        Field::new("b", DataType::LargeUtf8, false),
        Field::new("c", DataType::Int8, true),
    ]));
    let text = read(file, &table).await.unwrap();
    assert!(text.contains("| 2.00 | 1 |   |"), "{text}");
}

#[tokio::test]
async fn files_without_header_go_by_position() {
    let environment = environment(&[("/d/a.csv", b"1|x\n2|y\n")]);
    let file = DataFile::open(&environment, Path::new("/d/a.csv"), None, WITHOUT_HEADER).await.unwrap();
    assert_eq!(file.schema.field(1).name(), "column_2");
    let table = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)])) as SchemaRef;
    let error = read(file, &table).await.unwrap_err();
    assert!(error.report().contains("2 columns and the table has 1"), "{}", error.report());
}

#[tokio::test]
async fn torn_and_foreign_files_are_named() {
    let whole = parquet_bytes();
    let torn = &whole[..whole.len() - 20];
    let mut flipped = whole.clone();
    flipped[10] ^= 0xff;
    let environment = environment(&[
        ("/d/whole.parquet", &whole),
        ("/d/torn.parquet", torn),
        ("/d/empty.parquet", b""),
        ("/d/ragged.csv", b"a,b\n1,2\n3\n"),
        ("/d/binary.csv", b"a,b\n\xff\xfe,2\n"),
    ]);
    for name in ["/d/torn.parquet", "/d/empty.parquet", "/d/missing.parquet", "/d/ragged.csv", "/d/binary.csv"] {
        let error = DataFile::open(&environment, Path::new(name), None, WITH_HEADER).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::FileUnreadable, "{name}");
        assert!(error.message().contains(name), "{}", error.report());
    }
    let error = DataFile::open(&environment, Path::new("/d/whole"), None, WITH_HEADER).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
    let file = DataFile::open(&environment, Path::new("/d/whole.parquet"), None, WITH_HEADER).await.unwrap();
    let table = common_schema(std::slice::from_ref(&file)).unwrap();
    assert!(read(file, &table).await.unwrap().contains("| 999 |"));
}

#[tokio::test]
async fn bytes_that_are_corrupt_inside_fail_in_the_stream() {
    let mut bytes = parquet_bytes();
    for byte in &mut bytes[4..60] {
        *byte ^= 0xa5;
    }
    let environment = environment(&[("/d/f.parquet", &bytes)]);
    let file = DataFile::open(&environment, Path::new("/d/f.parquet"), None, WITH_HEADER).await.unwrap();
    let table = common_schema(std::slice::from_ref(&file)).unwrap();
    let error = read(file, &table).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileUnreadable);
    assert!(error.message().contains("/d/f.parquet"));
}

#[tokio::test]
async fn files_agree_on_common_types() {
    let environment = environment(&[("/d/a.csv", b"a,b,d,e\n1,x,5,\n"), ("/d/b.csv", b"a,c,d,e\n1.5,y,,\n")]);
    let mut files = Vec::new();
    for name in ["/d/a.csv", "/d/b.csv"] {
        files.push(DataFile::open(&environment, Path::new(name), None, WITH_HEADER).await.unwrap());
    }
    let schema = common_schema(&files).unwrap();
    let columns: Vec<String> =
        schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    assert_eq!(columns, ["a Float64", "b Utf8", "d Int64", "e Utf8", "c Utf8"]);
}
