"""What a user of the data does, and what stands on a board: run by relay_s3.rs, STEP says which part."""

import datetime, glob, math, os, re, sys, tempfile, time

BUCKET = os.environ["BUCKET"]
ENDPOINT, CA = os.environ["AWS_ENDPOINT_URL"], os.environ.get("CA")
BOOKED = 1_795_000_000.5  # The sensors' own time, in SenML.


def bucket():
    import boto3

    return boto3.client("s3", endpoint_url=ENDPOINT, verify=CA)


def objects():
    return bucket().list_objects_v2(Bucket=BUCKET).get("Contents", [])


def storage():
    keys = {"key": os.environ["AWS_ACCESS_KEY_ID"], "secret": os.environ["AWS_SECRET_ACCESS_KEY"]}
    return keys | {"client_kwargs": {"endpoint_url": ENDPOINT, "region_name": "us-east-1", "verify": CA}}


def messages():
    """Topic, payload, and the rows wanted: name, value, text, bool, unit, payload, time (None: when it was received)."""
    import cbor2

    row = lambda name=None, value=None, text=None, bool=None, unit=None, payload=None, time=None: (
        name, value, text, bool, unit, payload, time)
    json = b'[{"bn":"dev:","bt":%.1f,"bu":"Cel","n":"in","v":21.5},{"n":"out","u":"K","t":-2,"v":280},' \
           b'{"n":"door","vs":"open"},{"n":"ok","vb":true},{"n":"raw","vd":"AAH_"}]' % BOOKED
    cbor = cbor2.dumps([{-2: "cb:", 0: "half", 1: "V", 2: 1.5}, {0: "then", 6: BOOKED, 2: 7}, {0: "open", 4: False},
                        {0: "raw", 8: b"\x00\xff"}, {0: "word", 3: "hi"}, {0: "last", 2: -1}])
    return [
        ("z/plain", b"21.5", [row(value=21.5)]),
        ("z/plain", b"-3e2", [row(value=-300.0)]),
        ("y/truth", b"true", [row(bool=True)]),
        ("x/object", b'{"t": 1.5, "ok": false, "note": "warm", "none": null, "in": {"d": 2}, "list": [1, 2]}',
         [row("in.d", 2.0), row("list", payload=b"[1,2]"), row("note", text="warm"), row("ok", bool=False), row("t", 1.5)]),
        ("w/senml", json, [row("dev:in", 21.5, unit="Cel", time=BOOKED), row("dev:out", 280.0, unit="K", time=BOOKED - 2),
                           row("dev:door", text="open", unit="Cel", time=BOOKED), row("dev:ok", bool=True, unit="Cel", time=BOOKED),
                           row("dev:raw", payload=b"\x00\x01\xff", unit="Cel", time=BOOKED)]),
        ("v/cbor", cbor, [row("cb:half", 1.5, unit="V"), row("cb:then", 7.0, time=BOOKED), row("cb:open", bool=False),
                          row("cb:raw", payload=b"\x00\xff"), row("cb:word", text="hi"), row("cb:last", -1.0)]),
        ("u/binary", b"\xff\x00\x01", [row(payload=b"\xff\x00\x01")]),
        ("t/größe", b"door open", [row(payload=b"door open")]),
        ("s/empty", b"", [row(payload=b"")]),
        ("z/plain", b"7", [row(value=7.0)]),
    ]


def publish():
    import paho.mqtt.client as mqtt

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=int(os.environ["VERSION"]))
    client.connect("127.0.0.1", int(os.environ["PORT"]))
    client.loop_start()
    for topic, payload, _ in messages():
        client.publish(topic, payload, qos=1).wait_for_publish(20)
    client.disconnect()


def wanted():
    rows = [(topic, seq) + row for seq, (topic, _, rows) in enumerate(messages(), 1) for row in rows]
    return sorted(rows, key=lambda row: row[:2])  # Stable: the rows of one reading keep their order.


COLUMNS = ["topic", "seq", "name", "value", "text", "bool", "unit", "payload"]


def check_rows(got):
    """`got`: COLUMNS and the time in µs, of one board, in the file's order."""
    missing = lambda value: None if value is None or isinstance(value, float) and math.isnan(value) else value
    want = wanted()
    assert len(got) == len(want), (len(got), len(want), got)
    for row, (*values, when) in zip(got, want):
        assert [missing(value) for value in row[:-1]] == values, (row, values)
        off = abs(row[-1] / 1e6 - (when or time.time()))
        assert off < (1e-3 if when else 120), (row, when)


def check_names(epoch_of):
    for it in objects():
        name = r"lab/raw/(board=board-\d)/date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/(\d+)-(\d+)-(\d+)\.parquet"
        found = re.fullmatch(name, it["Key"])
        assert found, it["Key"]
        board, date, hour, epoch, first, last = found.groups()
        begin = datetime.datetime.fromisoformat(f"{date}T{hour}:00:00+00:00").timestamp()
        assert -120 < time.time() - begin < 3720, it["Key"]
        epoch_of.setdefault(board, set()).add((int(epoch), int(first), int(last)))


def check():
    import duckdb, pandas, pyarrow, pyarrow.parquet

    names = {}
    check_names(names)
    assert sorted(names) == ["board=board-1", "board=board-2"], names
    folder = tempfile.mkdtemp()
    schema = None
    for it in objects():
        path = os.path.join(folder, it["Key"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        bucket().download_file(BUCKET, it["Key"], path)
        table = pyarrow.parquet.ParquetFile(path).read()
        schema = table.schema
        order = list(zip(table["topic"].to_pylist(), table["seq"].to_pylist()))
        assert order == sorted(order), order
        epoch, first, last = map(int, os.path.basename(path).removesuffix(".parquet").split("-"))
        assert set(table["epoch"].to_pylist()) == {epoch} and first == min(n for _, n in order) and last == max(n for _, n in order)
    string = pyarrow.string()
    assert dict(zip(schema.names, schema.types)) == {
        "epoch": pyarrow.int64(), "seq": pyarrow.int64(), "time": pyarrow.timestamp("us", "UTC"), "topic": string,
        "name": string, "value": pyarrow.float64(), "text": string, "bool": pyarrow.bool_(), "unit": string,
        "payload": pyarrow.binary()}, schema
    # DuckDB, on the objects as files.
    files = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
    for board in ["board-1", "board-2"]:
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        check_rows(duckdb.sql(f"select {columns}, epoch_us(time) from {files} where board = '{board}' order by topic, seq").fetchall())
    # Pandas, one board, and all of them by the prefix.
    for board in ["board-1", "board-2"]:
        frame = pandas.read_parquet(f"s3://{BUCKET}/lab/raw/board={board}/", storage_options=storage())
        frame = frame.sort_values(["topic", "seq"], kind="stable")
        micros = frame["time"].dt.tz_convert("UTC").dt.as_unit("us").astype("int64")
        check_rows(list(zip(*[frame[name].astype(object).tolist() for name in COLUMNS], micros.tolist())))
        assert list(frame.columns) == list(schema.names) + ["date", "hour"], frame.columns
    whole = pandas.read_parquet(f"s3://{BUCKET}/lab/raw/", storage_options=storage())
    assert len(whole) == 2 * len(wanted()) and set(whole["board"]) == {"board-1", "board-2"}
    assert whole.groupby("epoch")["seq"].nunique().tolist() == [len(messages())] * 2
    assert [str(whole[name].dtype) for name in ["epoch", "seq", "value"]] == ["int64", "int64", "float64"], whole.dtypes
    assert str(whole["time"].dtype) == "datetime64[us, UTC]", whole.dtypes


def rows():
    """One line a row: the object's name, its last change, seq, µs, value."""
    import io, pyarrow.parquet

    for it in objects():
        body = bucket().get_object(Bucket=BUCKET, Key=it["Key"])["Body"].read()
        table = pyarrow.parquet.ParquetFile(io.BytesIO(body)).read()
        changed = bucket().head_object(Bucket=BUCKET, Key=it["Key"])["LastModified"].timestamp()
        for seq, when, value in zip(table["seq"].to_pylist(), table["time"].cast("int64").to_pylist(), table["value"].to_pylist()):
            print(it["Key"], changed, seq, when, value)


def create():
    bucket().create_bucket(Bucket=BUCKET)


globals()[os.environ["STEP"]]()
