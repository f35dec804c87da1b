//! `walpoint-bench`: measures Walpoint beside other tools. See `tools.toml` for who takes part.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use walpoint_bench::data::{Data, Size};
use walpoint_bench::run::RunPlan;
use walpoint_bench::work::WorkDirectory;
use walpoint_bench::{drive, keeping, machine, results, rows, run, sink, tools};

#[derive(Parser)]
#[command(about = "Measures Walpoint beside other tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, and write the results.
    Run(RunArgs),
    /// Print rows and tools.
    List(ListArgs),
    /// One measurement; the program starts itself with this.
    #[command(hide = true)]
    Drive,
    /// The server that keeps nothing; the program starts itself with this.
    #[command(hide = true)]
    Sink {
        /// Its port on 127.0.0.1.
        port: u16,
    },
}

#[derive(Parser)]
struct ListArgs {
    /// Who takes part.
    #[arg(long, default_value = "bench/tools.toml")]
    tools: PathBuf,
}

#[derive(Parser)]
struct RunArgs {
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these tools.
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Counted rounds of each row, after one that warms up.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// A small data set: for a look, not for results.
    #[arg(long)]
    quick: bool,
    /// Keep the data set for the next run.
    #[arg(long)]
    keep: bool,
    /// A directory with programs of ours as they are released: measured instead of those beside this one.
    #[arg(long)]
    released: Option<PathBuf>,
    /// Do not begin while the load average is higher than this.
    #[arg(long)]
    max_load: Option<f64>,
    /// Who takes part.
    #[arg(long, default_value = "bench/tools.toml")]
    tools: PathBuf,
    /// Where the results go.
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => measure(&args),
        Command::List(args) => list(&args),
        Command::Drive => {
            drive::main();
            Ok(())
        }
        Command::Sink { port } => sink::serve(port).map_err(|e| e.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("walpoint-bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn list(args: &ListArgs) -> Result<(), String> {
    let all = tools::read(&args.tools)?;
    for row in rows::ROWS.into_iter().chain(rows::FAR_ROWS) {
        let names: Vec<&str> = all.iter().filter(|c| row.admits(c)).map(|c| c.name.as_str()).collect();
        println!("{:20} {}: {}", row.name, row.title, names.join(", "));
    }
    let ours: Vec<&str> = all.iter().filter(|c| c.is_ours()).map(|c| c.name.as_str()).collect();
    for row in keeping::ROWS {
        println!("{:20} {}: {}", row.name, row.title, ours.join(", "));
    }
    Ok(())
}

fn measure(args: &RunArgs) -> Result<(), String> {
    let mut taking_part = tools::read(&args.tools)?;
    for name in &args.with {
        if !taking_part.iter().any(|c| c.name == *name) {
            return Err(format!("no tool {name}; see walpoint-bench list"));
        }
    }
    taking_part.retain(|c| args.with.is_empty() || args.with.contains(&c.name));
    for name in &args.only {
        if name != rows::FAR && rows::find(name).is_none() && keeping::find(name).is_none() {
            return Err(format!("no row {name}; see walpoint-bench list"));
        }
    }
    let is_chosen = |name: &str| args.only.is_empty() || args.only.iter().any(|chosen| chosen == name);
    let chosen = rows::chosen(&args.only);
    let mut keeping = keeping::ROWS.to_vec();
    keeping.retain(|row| is_chosen(row.name));
    let load = machine::load();
    if let Some(most) = args.max_load.filter(|most| load > *most) {
        return Err(format!("the load average is {load}, above {most}: others would be measured too"));
    }
    let whole = args.only.is_empty() && args.with.is_empty() && !args.quick;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let work = WorkDirectory::take(&program, args.released.as_deref())?;
    let size = if args.quick { Size::QUICK } else { Size::FULL };
    let data = Data::get(&work, size);
    let plan = RunPlan { rows: chosen, keeping, tools: taking_part, rounds: args.rounds, size };
    let outcome = run::run(&plan, &work, &data);
    let text = results::write(&plan, &data, &outcome, load);
    let output = args.output.clone().unwrap_or_else(|| {
        if whole { PathBuf::from("bench/RESULTS.md") } else { work.root().join("RESULTS-selected.md") }
    });
    std::fs::write(&output, &text).map_err(|e| format!("{}: {e}", output.display()))?;
    let raw = work.root().join("measured.json");
    let json = serde_json::to_vec(&outcome.measured).map_err(|e| e.to_string())?;
    std::fs::write(&raw, json).map_err(|e| format!("{}: {e}", raw.display()))?;
    println!("{text}");
    eprintln!("results: {}; all measurements: {}", output.display(), raw.display());
    work.finish(args.keep);
    Ok(())
}
