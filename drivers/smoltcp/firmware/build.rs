//! Tells the linker what memory the board has.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    let boards = [("LM3S6965EVB", "256K", "64K"), ("MPS2_AN385", "4M", "4M")];
    let chosen: Vec<_> = boards
        .into_iter()
        .filter(|(board, ..)| env::var_os(format!("CARGO_FEATURE_{board}")).is_some())
        .collect();
    let [(_, flash, ram)] = chosen[..] else {
        panic!("choose one board: --features lm3s6965evb or --features mps2-an385");
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to write"));
    let memory = format!(
        "MEMORY\n{{\n  FLASH : ORIGIN = 0x00000000, LENGTH = {flash}\n  \
         RAM : ORIGIN = 0x20000000, LENGTH = {ram}\n}}\n"
    );
    fs::write(out.join("memory.x"), memory).expect("the folder can be written to");
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rustc-link-arg=-Tlink.x");
    println!("cargo:rustc-link-arg=--nmagic");
    println!("cargo:rerun-if-changed=build.rs");
}
