//! Parse, run, map to an exit code.

fn main() -> std::process::ExitCode {
    matrix::cli::main()
}
