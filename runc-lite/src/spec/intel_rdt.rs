//! `linux.intelRdt`: cache and memory bandwidth classes, checked as far as text can be.

use super::{SpecError, invalid};
use crate::config::IntelRdt;
use crate::plan::{ClassOfService, IntelRdtPlan};

/// Names in a resctrl directory that are the kernel's own.
const RESERVED: [&str; 4] = ["info", "mon_groups", "mon_data", "tasks"];

fn check_line(field: &str, line: &str) -> Result<(), SpecError> {
    if line.contains(['\n', '\0']) {
        return Err(invalid(field, line, "contains a newline or NUL"));
    }
    if line
        .split_once(':')
        .is_none_or(|(resource, _)| resource.trim().is_empty())
    {
        return Err(invalid(
            field,
            line,
            "is not of the form RESOURCE:ID=VALUE;...",
        ));
    }
    Ok(())
}

pub(super) fn plan_intel_rdt(rdt: &IntelRdt) -> Result<IntelRdtPlan, SpecError> {
    let class = match rdt.clos_id.as_deref() {
        None | Some("") => ClassOfService::OfContainer,
        Some("/") => ClassOfService::Default,
        Some(name) => {
            let field = "linux.intelRdt.closID";
            if name == "." || name == ".." || RESERVED.contains(&name) {
                return Err(invalid(field, name, "is a reserved name"));
            }
            if name.contains(['/', '\n', '\0']) || name.len() > 255 {
                return Err(invalid(field, name, "is not a directory name"));
            }
            ClassOfService::Named(name.to_owned())
        }
    };
    let mut compared = Vec::new();
    let (l3, bandwidth) = (&rdt.l3_cache_schema, &rdt.mem_bw_schema);
    if !l3.is_empty() {
        check_line("linux.intelRdt.l3CacheSchema", l3)?;
        compared.push(l3.clone());
    }
    if !bandwidth.is_empty() {
        let field = "linux.intelRdt.memBwSchema";
        check_line(field, bandwidth)?;
        if !bandwidth.starts_with("MB:") {
            return Err(invalid(field, bandwidth, "does not begin with \"MB:\""));
        }
        compared.push(bandwidth.clone());
    }
    for (index, line) in rdt.schemata.iter().enumerate() {
        check_line(&format!("linux.intelRdt.schemata[{index}]"), line)?;
    }
    Ok(IntelRdtPlan {
        class,
        compared,
        schemata: rdt.schemata.clone(),
        monitoring: rdt.enable_monitoring,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemata_keep_the_order_of_the_specification() {
        let planned = plan_intel_rdt(&IntelRdt {
            clos_id: Some("guaranteed".to_owned()),
            l3_cache_schema: "L3:0=7f0".to_owned(),
            mem_bw_schema: "MB:0=20".to_owned(),
            schemata: vec!["L2:0=f".to_owned()],
            enable_monitoring: true,
        })
        .unwrap();
        assert_eq!(
            planned.class,
            ClassOfService::Named("guaranteed".to_owned())
        );
        assert_eq!(planned.compared, ["L3:0=7f0", "MB:0=20"]);
        assert_eq!(planned.schemata, ["L2:0=f"]);
        assert!(planned.monitoring);
    }

    #[test]
    fn what_resctrl_could_only_misread_is_refused() {
        let refused = |change: &dyn Fn(&mut IntelRdt), field: &str| {
            let mut rdt = IntelRdt::default();
            change(&mut rdt);
            let text = plan_intel_rdt(&rdt).unwrap_err().to_string();
            assert!(text.contains(field), "{text}");
        };
        for name in ["..", "a/b", "info", "mon_groups", "a\n"] {
            refused(
                &|rdt| rdt.clos_id = Some(name.to_owned()),
                "intelRdt.closID",
            );
        }
        refused(
            &|rdt| rdt.l3_cache_schema = "L3:0=f\nMB:0=1".to_owned(),
            "l3CacheSchema",
        );
        refused(
            &|rdt| rdt.mem_bw_schema = "L3:0=f".to_owned(),
            "memBwSchema",
        );
        refused(&|rdt| rdt.schemata = vec![String::new()], "schemata[0]");
    }
}
