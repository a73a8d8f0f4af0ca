//! Power cuts in the life of a store: images are taken in and removed in the guest, the power goes right after
//! one was acknowledged or at any moment, and on the same disk everything acknowledged has to be whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::Lane;
use super::boot::Show;
use super::payload::Payload;
use super::power::{Cut, Moment};
use super::results::Collected;
use crate::binaries::Binaries;
use crate::images::{Compression, Entry, Image, Layer};

/// Images that take turns; the lowest layer is common to all.
const IMAGES: u32 = 5;
/// How long taking in a few images and checking them may take, emulated on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);

/// What the guest needs: the daemon's program and archives of images.
#[derive(Debug)]
pub struct StoreCuts {
    axild: PathBuf,
    archives: Vec<PathBuf>,
}

impl StoreCuts {
    /// Builds the program and the archives, the archives below `scratch`.
    ///
    /// # Errors
    /// When something does not build or cannot be written.
    pub fn prepare(scratch: &Path) -> Result<Self> {
        let axild = Binaries::for_tests()?.axild();
        let dir = scratch.join("store-images");
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let archives = (1..=IMAGES).map(|number| {
            let path = dir.join(format!("{number}.tar"));
            write_archive(&image(number)?, number, &path)
                .with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        });
        let archives = archives.collect::<Result<_>>()?;
        Ok(Self { axild, archives })
    }

    fn payload(&self, script: &str) -> Payload {
        let mut payload = Payload::script(script).program("axild", &self.axild);
        for (position, archive) in self.archives.iter().enumerate() {
            payload = payload.program(&format!("{}.tar", position + 1), archive);
        }
        payload
    }

    /// Cuts the power in round `round`: in odd ones right after the acknowledgement of an image, a later one each
    /// time, in even ones at some moment of the work.
    ///
    /// # Errors
    /// When something that was acknowledged is not whole, or as [`Lane::power_cut`].
    pub fn check(&self, lane: &Lane, round: u32) -> Result<Collected> {
        let (acknowledged, moment) = if round % 2 == 1 {
            let number = 1 + round / 2;
            (number, Moment::Line(format!("acknowledged {number}.")))
        } else {
            let time = 2_500 + u64::from(round) * 1_307 % 9_000;
            (0, Moment::After(Duration::from_millis(time)))
        };
        let before = format!("images={IMAGES}\n{AXILD}{WORKLOAD}");
        let after = format!("images={IMAGES}\nlast={acknowledged}\n{AXILD}{CHECK}");
        let checked = lane.power_cut(
            "store",
            &Cut {
                workload: &self.payload(&before),
                moment,
                check: &self.payload(&after),
                show: Show::Progress,
                limit: LIMIT,
            },
        )?;
        let found = checked.text("found")?;
        ensure!(
            checked.exit_code == 0,
            "the store after a power cut: {}",
            found.trim()
        );
        Ok(checked)
    }
}

/// Three layers of many small files and some larger ones.
fn image(number: u32) -> Result<Image> {
    let layer = |seed: u32| {
        let mut layer = Layer::new(Compression::Gzip);
        let mut state = seed | 1;
        for file in 0..60_usize {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            };
            let content = std::iter::repeat_with(&mut next).take(200 + file * 700);
            let path = format!("data/{seed}/{file}");
            layer = layer
                .parents(&path)
                .entry(&path, 0o644, 0, Entry::Text(content.collect()));
        }
        layer
    };
    let layers = [layer(1), layer(number * 10), layer(number * 10 + 1)];
    Image::build(&json!({ "Cmd": ["/none"] }), &layers)
}

fn write_archive(image: &Image, number: u32, path: &Path) -> Result<()> {
    let layout = path.with_extension("layout");
    image.write_layout(&layout, &format!("power.example/app:{number}"))?;
    let mut tar = tar::Builder::new(fs::File::create(path)?);
    tar.append_dir_all(".", &layout)?;
    tar.finish()?;
    fs::remove_dir_all(&layout)?;
    Ok(())
}

const AXILD: &str = r#"
axild() { ./axild --root /var/lib/axil --state /run/axil "$@"; }
"#;

/// The name of a round in the journal exists only after its image was acknowledged, and is durable before the
/// image of the round before the last goes.
const WORKLOAD: &str = r#"
mkdir -p /var/lib/axil /var/lib/journal
sync
for ((i = 1; ; i++)); do
    axild images import "$(((i - 1) % images + 1)).tar" || exit 1
    echo "acknowledged $i."
    : >"/var/lib/journal/$i"
    sync "/var/lib/journal/$i" /var/lib/journal || exit 1
    if ((i > 2)); then
        axild images rm "power.example/app:$(((i - 3) % images + 1))" || exit 1
    fi
done
"#;

const CHECK: &str = r#"
wrong=0
say() { echo "$*" >>"$RESULTS/found"; }
axild fsck --deep >"$RESULTS/fsck" 2>&1
code=$?
if ((code != 0)); then
    say "fsck --deep ended with $code: $(cat "$RESULTS/fsck")"
    wrong=1
fi
axild images ls >"$RESULTS/images" 2>&1 || wrong=1
listed() { grep -q "app:$((($1 - 1) % images + 1)) " "$RESULTS/images"; }
# What the console had before the power went, or what the journal has beyond it.
noted=$(ls /var/lib/journal | sort -n | tail -n 1)
((${noted:-0} > last)) && last=$noted
for ((i = last; i > 0 && i > last - 2; i--)); do
    if ! listed "$i"; then
        say "the image of round $i was acknowledged and is not there: $(cat "$RESULTS/images")"
        wrong=1
    fi
done
if ((last > 3)) && listed $((last - 3)); then
    say "the image of round $((last - 3)) was removed and is there: $(cat "$RESULTS/images")"
    wrong=1
fi
for ((image = 1; image <= images; image++)); do
    if ! axild images import "$image.tar" >>"$RESULTS/import" 2>&1; then
        say "image $image cannot be taken in afterwards: $(tail -n 3 "$RESULTS/import")"
        wrong=1
    fi
done
if ! axild fsck --deep >"$RESULTS/fsck-after" 2>&1; then
    say "fsck --deep after that: $(cat "$RESULTS/fsck-after")"
    wrong=1
fi
if dmesg | grep -E 'EXT4-fs (error|warning)' >>"$RESULTS/found"; then
    wrong=1
fi
say "after $last acknowledged images: $(tail -n 1 "$RESULTS/fsck")"
exit $wrong
"#;
