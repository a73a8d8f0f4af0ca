//! Keeps `api/*.proto` equal to the golden wire tables: every call, message, field and enum value.

use std::collections::BTreeSet;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto};

/// Rows of one table: `(kind, parent, number, label, name, type)`.
type Rows = BTreeSet<[String; 6]>;

const WELL_KNOWN: &str = "google.protobuf.";

fn golden(text: &str) -> Rows {
    let mut rows: Rows = text
        .lines()
        .skip(1)
        .map(|line| {
            let mut columns = line.split('\t').map(str::to_owned);
            std::array::from_fn(|_| columns.next().unwrap_or_default())
        })
        .collect();
    // A table names a type of its own file by its last part, elsewhere in full.
    rows = rows
        .into_iter()
        .map(|[kind, parent, number, label, name, kind_of]| {
            [kind, parent, number, label, name, short_types(&kind_of)]
        })
        .collect();
    rows
}

/// Drops packages from type names, so that `containerd.types.Mount` equals `Mount`.
fn short_types(text: &str) -> String {
    text.split(' ')
        .map(|word| {
            if word.starts_with("map<") {
                word
            } else {
                word.rsplit('.').next().unwrap_or(word)
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn row(kind: &str, parent: &str, number: &str, label: &str, name: &str, of: &str) -> [String; 6] {
    [kind, parent, number, label, name, of].map(str::to_owned)
}

fn scalar(kind: Type) -> &'static str {
    match kind {
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Bool => "bool",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Uint32 => "uint32",
        Type::Uint64 => "uint64",
        Type::Double => "double",
        other => panic!("type {other:?} is not in any table"),
    }
}

fn enum_rows(prefix: &str, declared: &EnumDescriptorProto, rows: &mut Rows) {
    let parent = format!("{prefix}{}", declared.name());
    for value in &declared.value {
        rows.insert(row(
            "enum",
            &parent,
            &value.number().to_string(),
            "",
            value.name(),
            "",
        ));
    }
}

fn message_rows(message: &DescriptorProto, rows: &mut Rows) {
    for nested in &message.enum_type {
        enum_rows(&format!("{}.", message.name()), nested, rows);
    }
    if message.field.is_empty() {
        rows.insert(row("message", message.name(), "", "", "", ""));
    }
    for field in &message.field {
        let entry = message.nested_type.iter().find(|nested| {
            nested
                .options
                .as_ref()
                .is_some_and(|options| options.map_entry())
                && field.type_name().ends_with(&format!(".{}", nested.name()))
        });
        let mut of = match (entry, field.r#type()) {
            (Some(entry), _) => {
                let part = |n: usize| scalar(entry.field[n].r#type());
                format!("map<{},{}>", part(0), part(1))
            }
            (None, Type::Message | Type::Enum) => short_types(field.type_name()),
            (None, kind) => scalar(kind).to_owned(),
        };
        if field
            .options
            .as_ref()
            .is_some_and(|options| options.deprecated())
        {
            of.push_str(" deprecated");
        }
        let label = match (entry, field.label()) {
            (None, Label::Repeated) => "repeated",
            _ if field.proto3_optional() => "optional",
            _ => "",
        };
        let number = field.number().to_string();
        rows.insert(row(
            "field",
            message.name(),
            &number,
            label,
            field.name(),
            &of,
        ));
    }
}

fn file_rows(file: &FileDescriptorProto, rows: &mut Rows) {
    for declared in &file.enum_type {
        enum_rows("", declared, rows);
    }
    for message in &file.message_type {
        message_rows(message, rows);
    }
    for service in &file.service {
        let parent = format!("{}.{}", file.package(), service.name());
        for method in &service.method {
            let stream = if method.server_streaming() {
                "stream "
            } else {
                ""
            };
            let of = format!(
                "{} -> {stream}{}",
                short_types(method.input_type()),
                short_types(method.output_type())
            );
            rows.insert(row("rpc", &parent, "", "", method.name(), &of));
        }
    }
}

fn compiled(files: &[&str]) -> Rows {
    let api = concat!(env!("CARGO_MANIFEST_DIR"), "/api");
    let set = protox::compile(files, [api]).expect("api/ compiles, as the build did");
    let mut rows = Rows::new();
    for file in set
        .file
        .iter()
        .filter(|file| !file.package().starts_with("google.protobuf"))
    {
        file_rows(file, &mut rows);
    }
    rows
}

/// Every golden row must be compiled; and what is compiled beyond one table must be in another one.
#[track_caller]
fn check(files: &[&str], tables: &[&str]) {
    let golden: Rows = tables.iter().flat_map(|table| golden(table)).collect();
    let compiled = compiled(files);
    let missing: Vec<_> = golden.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&golden).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing {missing:#?}\nextra {extra:#?}"
    );
    assert!(golden.iter().all(|row| !row[5].starts_with(WELL_KNOWN)));
}

#[test]
fn cri_equals_its_table() {
    check(&["cri.proto"], &[include_str!("tables/cri-v1.tsv")]);
}

#[test]
fn cri_has_its_43_calls() {
    let calls = compiled(&["cri.proto"])
        .iter()
        .filter(|row| row[0] == "rpc")
        .count();
    assert_eq!(calls, 43);
}

#[test]
fn shim_protocol_equals_its_tables() {
    check(
        &[
            "bootstrap.proto",
            "events.proto",
            "events_service.proto",
            "runc_options.proto",
            "sandbox.proto",
            "task.proto",
            "task_types.proto",
            "types.proto",
        ],
        &[
            include_str!("tables/shim-task-v3.tsv"),
            include_str!("tables/shim-sandbox-v1.tsv"),
            include_str!("tables/shim-events.tsv"),
            include_str!("tables/shim-bootstrap.tsv"),
        ],
    );
}
