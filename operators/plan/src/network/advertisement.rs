//! Whether links take addresses and routes from the advertisements of routers.

use super::{Link, Selected};
use crate::kernel::Parameters;

/// Takes advertisements even while packets are forwarded, as they are on a machine with pods (`accept_ra`).
const ALWAYS: &str = "2";
const NEVER: &str = "0";
const ON: &str = "1";

/// The kernel's parameters that make links take advertisements, or not, as declared.
pub fn parameters(selected: &[Selected], links: &[Link]) -> Parameters {
    let mut parameters = Parameters::new();
    for Selected { index, config } in selected {
        let link = links.iter().find(|link| link.index == *index);
        let (Some(link), Some(accepts)) = (link, config.accept_ra) else { continue };
        // A dot in a name is written as a slash.
        let parameter = |name: &str| format!("net.ipv6.conf.{}.{name}", link.name.replace('.', "/"));
        parameters.insert(parameter("accept_ra"), if accepts { ALWAYS } else { NEVER }.to_owned());
        if accepts {
            parameters.insert(parameter("autoconf"), ON.to_owned());
        }
    }
    parameters
}
