# Verbs of the project; each is a plain command that can be typed without just.

target := arch() + "-unknown-linux-musl"
endpoint := "unix:///run/axil/axil.sock"

# Lists the verbs.
default:
    @just --list --unsorted

# What a change must pass without root: format, lints, dependencies, unprivileged tests.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy -p axild --all-targets --features failpoints -- -D warnings
    cargo deny check
    cargo nextest run --workspace -E 'not test(privileged_)'

# Every test; privileged ones say why they are skipped where they cannot run.
test *args:
    cargo nextest run --workspace {{args}}

# Every test as root, after installing what they need; a skip is a failure.
test-root *args:
    cargo run -p axil-integration --bin test-all -- {{args}}

# Tests in a virtual machine with cgroup v2 alone, systemd and AppArmor; --short, --filter, --run, --help.
vm *args:
    cargo run -p axil-integration --bin vm-lane -- {{args}}

# The tests with NAME in their name, with their output.
one name:
    cargo nextest run --workspace --no-capture -E 'test({{name}})'

# The guided run of the README; --keep leaves the node running until ctrl-C.
first-run *args:
    cargo run -p axil-integration --bin first-run -- {{args}}

# Builds the three binaries as operators run them, into target/run.
build:
    cargo build --release -p axild
    cargo build --profile small --target {{target}} -p containerd-shim-axil-v1 -p runc-lite
    install -D -m 0755 -t target/run target/release/axild \
        target/{{target}}/small/containerd-shim-axil-v1 target/{{target}}/small/runc-lite

# Builds and runs axild in the foreground; arguments go to it.
run *args: build
    target/run/axild {{args}}

# Runs the CRI validation suite against a running axild; critest must be installed.
critest *args:
    critest --runtime-endpoint {{endpoint}} --image-endpoint {{endpoint}} {{args}}

# Fuzzes a target of runc-lite; needs nightly and cargo-fuzz. Options after the name go to libFuzzer.
fuzz target *args: (fuzz-of "runc-lite" target args)

# Fuzzes a target of a package (runc-lite, daemon), as `fuzz` does.
fuzz-of package target *args:
    mkdir -p {{package}}/fuzz/corpus/{{target}}
    cd {{package}}/fuzz && cargo +nightly fuzz run {{target}} corpus/{{target}} seeds/{{target}} -- \
        -dict=dictionaries/documents.dict -rss_limit_mb=512 -timeout=5 {{args}}

# Measures runc-lite against crun and runc, in turns on one bundle; needs root.
bench-runtime *args:
    cargo run -p axil-integration --bin bench-runtime -- {{args}}

# Measures pulls by axild against Debian's containerd, in turns on one image; needs root.
bench-images *args:
    cargo run --release -p axil-integration --bin bench-images -- {{args}}

# The attacks on runc-lite that are races, for as long as --seconds says; needs root.
attack *args:
    cargo run -p runc-lite --example attack-loops -- {{args}}

# Measures the unpacking of layers.
bench *args:
    cargo bench -p axil-snapshotter {{args}}

# Writes packaging/config.toml anew from the table of keys.
config:
    cargo run --quiet -p axild -- --print-config > packaging/config.toml
