//! `axild pulls`: how far the pulls of the running daemon are.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::images::human;
use super::{ask, each_line, say};
use crate::config::Config;
use crate::control::{Line, Request};
use crate::engine::progress::{LayerStage, LayerView, PullView};

/// Options of `axild pulls`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Go on until interrupted, with a bar for each layer.
    #[arg(long, short)]
    watch: bool,
    /// Print JSON: a document per pull, or with --watch a line with all pulls at each change.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let request = Request::ListPulls {
        watch: arguments.watch,
    };
    let answer = ask(config, request).await?;
    let mut display = match (arguments.watch, arguments.json) {
        (false, true) => Display::Documents,
        (true, true) => Display::Lines,
        (false, false) => Display::Table,
        (true, false) if std::io::stderr().is_terminal() => Display::Bars(Bars::default()),
        // What is no terminal gets a line per change of a stage.
        (true, false) => Display::Changes(BTreeMap::new()),
    };
    let mut failed = None;
    each_line(answer, |line| {
        if let Line::Pulls(pulls) = line
            && let Err(error) = display.show(&pulls)
        {
            failed = Some(error);
        }
    })
    .await?;
    match failed {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

enum Display {
    Documents,
    Lines,
    Table,
    Changes(BTreeMap<(u64, String), &'static str>),
    Bars(Bars),
}

impl Display {
    fn show(&mut self, pulls: &[PullView]) -> anyhow::Result<()> {
        match self {
            Self::Documents => {
                for pull in pulls {
                    say(serde_json::to_string(pull)?);
                }
            }
            Self::Lines => say(serde_json::to_string(pulls)?),
            Self::Table => {
                for pull in pulls {
                    say(format_args!("{}  {}", pull.image, pull.step));
                    for layer in &pull.layers {
                        say(format_args!("  {}", summary(layer)));
                    }
                }
            }
            Self::Changes(known) => {
                for pull in pulls {
                    for layer in &pull.layers {
                        let stage = layer.stage.name();
                        let key = (pull.id, layer.digest.clone());
                        if known.insert(key, stage) != Some(stage) {
                            say(format_args!("{}  {}", pull.image, summary(layer)));
                        }
                    }
                }
                known.retain(|(id, _), _| pulls.iter().any(|pull| pull.id == *id));
            }
            Self::Bars(bars) => bars.show(pulls)?,
        }
        Ok(())
    }
}

/// A digest as people compare it.
fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

fn summary(layer: &LayerView) -> String {
    format!(
        "{:12}  {:9}  {} of {}, {} unpacked",
        short(&layer.digest),
        layer.stage.name(),
        human(layer.fetched),
        human(layer.total),
        human(layer.unpacked)
    )
}

/// Bars on a terminal: a line per pull, below it one per layer.
struct Bars {
    all: MultiProgress,
    pulls: BTreeMap<u64, ProgressBar>,
    layers: BTreeMap<(u64, usize), ProgressBar>,
}

impl Default for Bars {
    fn default() -> Self {
        Self {
            all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            pulls: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }
}

impl Bars {
    fn show(&mut self, pulls: &[PullView]) -> anyhow::Result<()> {
        for pull in pulls {
            if !self.pulls.contains_key(&pull.id) {
                let bar = ProgressBar::new_spinner();
                bar.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
                self.pulls.insert(pull.id, self.all.add(bar));
            }
            if let Some(bar) = self.pulls.get(&pull.id) {
                bar.set_message(format!("{}  {}", pull.image, pull.step));
                bar.tick();
            }
            for (at, layer) in pull.layers.iter().enumerate() {
                self.layer((pull.id, at), layer)?;
            }
        }
        let is_open = |id: u64| pulls.iter().any(|pull| pull.id == id);
        self.layers.retain(|(id, _), bar| keep(is_open(*id), bar));
        self.pulls.retain(|id, bar| keep(is_open(*id), bar));
        Ok(())
    }

    fn layer(&mut self, key: (u64, usize), layer: &LayerView) -> anyhow::Result<()> {
        if !self.layers.contains_key(&key) {
            let bar = ProgressBar::new(layer.total);
            let style = "  {prefix} {bar:30} {binary_bytes:>11} of {binary_total_bytes:11} {msg}";
            bar.set_style(ProgressStyle::with_template(style)?);
            bar.set_prefix(short(&layer.digest).to_owned());
            // Below the bars of its pull, in the order of the layers.
            let above = match key.1.checked_sub(1) {
                Some(at) => self.layers.get(&(key.0, at)),
                None => self.pulls.get(&key.0),
            };
            let bar = match above {
                Some(above) => self.all.insert_after(above, bar),
                None => self.all.add(bar),
            };
            self.layers.insert(key, bar);
        }
        if let Some(bar) = self.layers.get(&key) {
            bar.set_position(layer.fetched);
            let unpacked = match layer.stage {
                LayerStage::Waiting | LayerStage::Stored => String::new(),
                LayerStage::Fetching | LayerStage::Unpacking | LayerStage::Unpacked => {
                    format!(", {} unpacked", human(layer.unpacked))
                }
            };
            bar.set_message(format!("{}{unpacked}", layer.stage.name()));
        }
        Ok(())
    }
}

/// Takes the bar of a pull that ended away.
fn keep(is_open: bool, bar: &ProgressBar) -> bool {
    if !is_open {
        bar.finish_and_clear();
    }
    is_open
}
