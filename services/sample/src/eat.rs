//! Eating memory.

use crate::Outcome;
use crate::stop::Stop;

/// Fills `mib` MiB, one after another, and says how far it is; with `hold` keeps them until stopped.
pub fn eat(mib: usize, hold: bool) -> Outcome {
    let stop = Stop::block()?;
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for count in 1..=mib {
        // Written, not only reserved: a page that was never touched is not in memory. The content
        // differs from page to page, so that the kernel cannot merge or compress it away.
        eaten.push((0..1024 * 1024).map(|at: usize| (at ^ (at >> 7) ^ count) as u8).collect());
        if count % 64 == 0 || count == mib {
            println!("{count} MiB");
        }
    }
    if hold {
        stop.wait()?;
    }
    std::hint::black_box(&eaten);
    Ok(())
}
