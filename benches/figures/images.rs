//! Images of 200 MB made and installed, beside a node's engine that does the same.
//!
//! Each round has content of its own, so that no registry, engine or cache has seen it before.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
};

use crate::{
    deploys::Plan,
    report::{Figure, Goal, Other, Report, Unit},
    rig::{Lab, Masters, Res, matrix, noisy, run, timed},
};

/// Puts the small image of all deploys into the lab's registry: the hello program, with the libraries it wants.
pub fn prepare(lab: &Lab) -> Res<()> {
    let program = Path::new(env!("CARGO_BIN_EXE_matrix")).with_file_name("examples").join("hello");
    if !program.is_file() {
        return Err("there is no hello program: cargo build --release --example hello".into());
    }
    let directory = lab.state_dir().join("bench-hello");
    fs::create_dir_all(&directory)?;
    let mut files = vec![format!("{{ from = \"hello\", to = \"/hello\", mode = \"0755\" }}")];
    fs::copy(&program, directory.join("hello"))?;
    // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader without an arrow.
    for line in run(Command::new("ldd").arg(&program))?.lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::copy(path, directory.join(&name))?;
        files.push(format!("{{ from = \"{name}\", to = \"{path}\", mode = \"0755\" }}"));
    }
    let settings = format!("base = \"scratch\"\nfiles = [{}]\ncommand = [\"/hello\"]\nport = 8080\n", files.join(", "));
    fs::write(directory.join("image.toml"), settings)?;
    let archive = lab.state_dir().join("bench-hello.tar");
    create(lab, "hello", &directory, &archive)?;
    run(lab.matrix(&["install-image", &archive.display().to_string()]))?;
    // Every node has it, and every program has run once.
    let plan = Plan::new(lab, 1)?;
    plan.ours()?;
    plan.nothing()
}

fn create(lab: &Lab, name: &str, directory: &Path, archive: &Path) -> Res<()> {
    let mut command = matrix();
    command.env("XDG_CACHE_HOME", lab.state_dir().join("bench-cache")).arg("create-image").arg(name).arg(directory);
    run(command.arg("--output").arg(archive)).map(drop)
}

/// 200 MB: half of it text that compresses well, half random, in files of 64 KiB to 4 MiB. The same seed, the same bytes.
fn write_directory(directory: &Path, seed: u64) -> Res<()> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<String> = (0..4096).map(|_| format!("{:x}", next() & 0xff_ffff)).collect();
    let (mut left, mut number) = (200usize << 20, 0);
    while left > 0 {
        let size = left.min((64 << 10) << (number % 7));
        let folder = directory.join("data").join(format!("d{}", number % 10));
        fs::create_dir_all(&folder)?;
        let mut content = Vec::with_capacity(size + 16);
        while content.len() < size {
            if number % 2 == 0 {
                content.extend_from_slice(&next().to_le_bytes());
            } else {
                content.extend_from_slice(words[usize::try_from(next() % 4096)?].as_bytes());
                content.push(b' ');
            }
        }
        File::create(folder.join(format!("f{number}")))?.write_all(&content[..size])?;
        left -= size;
        number += 1;
    }
    fs::write(directory.join("image.toml"), "base = \"scratch\"\ncommand = [\"/data\"]\n")?;
    fs::write(directory.join("Dockerfile"), "FROM scratch\nCOPY data /data\nCMD [\"/data\"]\n")?;
    Ok(())
}

/// Seconds a command takes on a node, by the node's own clock: the way there is not counted.
fn on_node(masters: &Masters, command: &str) -> Res<f64> {
    let told = run(masters.on(0, &format!("s=$(date +%s%N); {command} >/dev/null && echo $(($(date +%s%N) - s))")))?;
    let nanoseconds: f64 = told.trim().parse()?;
    Ok(nanoseconds / 1e9)
}

#[derive(Default)]
struct Pair {
    ours: Vec<f64>,
    other: Vec<f64>,
}

pub fn measure(lab: &Lab, report: &mut Report) -> Res<()> {
    let masters = Masters::open(lab)?;
    // A node's /var/lib/docker is a directory of this machine: the engine finds the very same files.
    let directory = lab.state_dir().join("nodes/node1/docker/bench");
    let archive = lab.state_dir().join("bench.tar");
    let (mut build, mut push) = (Pair::default(), Pair::default());
    let (mut rebuilt, mut reinstalled, mut doubted) = (Vec::new(), Vec::new(), 0);
    for round in 0..=3u64 {
        _ = fs::remove_dir_all(&directory);
        write_directory(&directory, round + 1)?;
        _ = fs::remove_dir_all(lab.state_dir().join("bench-cache"));
        _ = fs::remove_file(&archive);
        run(&mut Command::new("sync"))?;
        let noise = noisy();
        let created = timed(|| create(lab, "big", &directory, &archive))?;
        let again = timed(|| create(lab, "big", &directory, &archive))?;
        let image = format!("matrix-manager.matrix:5000/bench/push{round}");
        let engine = on_node(&masters, &format!("docker build -q --no-cache -t {image} /var/lib/docker/bench"))?;
        let name = format!("bench/install{round}");
        let path = archive.display().to_string();
        let install = || run(lab.matrix(&["install-image", &path, "--name", &name])).map(drop);
        let noise = noisy() || noise;
        let installed = timed(install)?;
        let unchanged = timed(install)?;
        let pushed = on_node(&masters, &format!("docker push -q {image}"))?;
        run(masters.on(0, &format!("docker rmi -f {image} >/dev/null; docker system prune -f >/dev/null")))?;
        if round > 0 {
            build.ours.push(created);
            build.other.push(engine);
            push.ours.push(installed);
            push.other.push(pushed);
            rebuilt.push(again * 1000.0);
            reinstalled.push(unchanged * 1000.0);
            doubted += usize::from(noise);
        }
    }
    _ = fs::remove_dir_all(&directory);
    _ = fs::remove_file(&archive);
    let mut add = |name: &str, unit, ours, other, goal| {
        report.add(Figure { name: name.to_owned(), unit, ours, other, goal, noisy: doubted });
    };
    let measured = Other::Measured;
    add(
        "create-image of 200 MB, beside docker build",
        Unit::Seconds,
        build.ours,
        measured(build.other),
        Goal::Below(1.0),
    );
    add("create-image of 200 MB, unchanged", Unit::Millis, rebuilt, Other::Limit(1000.0), Goal::Below(1.0));
    add(
        "install-image of 200 MB, beside docker push",
        Unit::Seconds,
        push.ours,
        measured(push.other),
        Goal::AtMost(1.0),
    );
    add("install-image of 200 MB, unchanged", Unit::Millis, reinstalled, Other::Limit(300.0), Goal::Below(1.0));
    Ok(())
}
