//! Compiles the contract with a pure-Rust proto compiler: no `protoc` is needed to build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=tunneld");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = protox::compile(["tunneld/v1/tunneld.proto"], ["."])?;
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("tunneld_descriptor.bin"))
        .compile_fds(descriptors)?;
    Ok(())
}
