//! `ckptbpf check` on the kernel that the tests run on.
// A test that cannot go on has failed: helpers may panic as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use ckptbpf::check::{self, Status};

#[test]
fn the_main_job_works_for_root() {
    let report = check::run();
    println!("{report}");
    assert!(report.main_job_works(), "{report}");
    let names: std::collections::BTreeSet<_> = report.features.iter().map(|feature| feature.name).collect();
    assert_eq!(names.len(), report.features.len(), "names are unique");
    for feature in &report.features {
        assert_eq!(feature.status == Status::Ok, feature.detail.is_empty(), "{feature:?}");
    }
}

#[test]
fn what_the_kernel_says_in_other_places_agrees() {
    let report = check::run();
    let ok = |name: &str| report.feature(name).unwrap().status == Status::Ok;
    assert_eq!(ok("time namespace"), std::path::Path::new("/proc/self/ns/time").exists());
    assert_eq!(ok("BTF"), std::path::Path::new("/sys/kernel/btf/vmlinux").exists());
    assert!(!ok("PAGEMAP_SCAN") || ok("userfaultfd WP_ASYNC"));
    assert!(
        ok("PAGEMAP_SCAN")
            || ok("soft-dirty")
            || report.feature("soft-dirty").unwrap().detail.contains("full")
    );
}

#[test]
fn the_report_is_json() {
    let json: serde_json::Value =
        serde_json::from_str(&serde_json::to_string(&check::run()).unwrap()).unwrap();
    let seize = json["features"].as_array().unwrap().iter().find(|f| f["name"] == "ptrace seize").unwrap();
    assert_eq!((seize["status"].as_str(), seize["required"].as_bool()), (Some("ok"), Some(true)));
}
