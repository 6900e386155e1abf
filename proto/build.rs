//! Generates the wire types with a compiler in Rust, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["aubade/storage/v1/storage.proto", "aubade/manifest/v1/manifest.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".arrow.flight.protocol.FlightData", "::arrow_flight::FlightData")
        .extern_path(".arrow.flight.protocol.FlightDescriptor", "::arrow_flight::FlightDescriptor")
        .compile_fds(descriptors)?;
    Ok(())
}
