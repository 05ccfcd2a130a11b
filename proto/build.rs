//! Compiles the contract with a pure-Rust proto compiler: no `protoc` is needed to build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=tunneld");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_file("tunneld/v1/tunneld.proto")?;
    std::fs::write(
        out.join("tunneld_descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    tonic_prost_build::configure()
        .bytes(".tunneld.v1")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
