use super::*;
use proptest::prelude::*;

fn ids(uid: u32, groups: &[u32]) -> FsIds {
    FsIds { uid, gid: uid, groups: groups.to_vec() }
}

fn claims(uids: &[u32], gids: &[u32]) -> Claimed {
    Claimed { uids: uids.to_vec(), gids: gids.to_vec(), capabilities: 0 }
}

#[test]
fn sudo_runs_the_program_as_the_person_who_called_it() {
    assert_eq!(choose(0, Some("1000"), None), Choice::Uid(1000));
    assert_eq!(choose(0, Some("0"), None), Choice::Current);
    assert_eq!(choose(0, None, None), Choice::Current);
    assert_eq!(choose(1000, Some("1001"), None), Choice::Current);
    assert_eq!(choose(0, Some("garbage"), None), Choice::Current);
    assert_eq!(choose(0, Some("1000"), Some("root")), Choice::Name("root".into()));
    assert_eq!(choose(0, Some("1000"), Some("1001")), Choice::Uid(1001));
}

#[test]
fn a_users_identity_brings_its_environment() {
    let Ok(Some(user)) = User::from_name("nobody") else {
        return crate::skipped::because("nobody is called nobody here");
    };
    let nobody = Identity::of_user(&user).unwrap();
    let keys: Vec<_> = nobody.env.iter().map(|(key, _)| key.to_str().unwrap()).collect();
    assert_eq!(keys, ["HOME", "USER", "LOGNAME", "SHELL"]);
    assert!(nobody.groups.contains(&nobody.gid));
    assert!(Identity::of_caller(Some("no-such-user-here")).unwrap_err().to_string().contains("getent"));
}

#[test]
fn an_image_of_a_user_never_gives_root() {
    let sudo = Caller { ids: ids(1000, &[1000, 27]), root: true };
    let owner = ids(1000, &[1000]);
    assert!(matches!(
        permitted(&owner, &sudo, &claims(&[0], &[1000])),
        Err(Refusal::User { claimed: 0, .. })
    ));
    assert!(matches!(
        permitted(&owner, &sudo, &claims(&[1000], &[0])),
        Err(Refusal::Group { claimed: 0, .. })
    ));
    let capable = Claimed { capabilities: 1, ..claims(&[1000], &[1000]) };
    assert!(matches!(permitted(&owner, &sudo, &capable), Err(Refusal::Capabilities { .. })));
    assert_eq!(permitted(&owner, &sudo, &claims(&[1000], &[1000, 27])), Ok(()));
    // Root himself gives a user's image that user's ids, and not his own.
    let root = Caller { ids: ids(0, &[0]), root: true };
    assert_eq!(permitted(&owner, &root, &claims(&[1000], &[1000])), Ok(()));
    assert!(permitted(&owner, &root, &claims(&[0], &[1000])).is_err());
    assert!(permitted(&owner, &root, &claims(&[1000], &[0])).is_err());
}

#[test]
fn only_roots_image_restores_root_and_only_with_roots_rights() {
    let owner = ids(0, &[0]);
    let claim = Claimed { capabilities: u64::MAX, ..claims(&[0], &[0, 5]) };
    assert_eq!(permitted(&owner, &Caller { ids: ids(1000, &[]), root: true }, &claim), Ok(()));
    let without = Caller { ids: ids(1000, &[]), root: false };
    assert_eq!(permitted(&owner, &without, &claim), Err(Refusal::NeedsRoot { owner: 0 }));
}

proptest! {
    #[test]
    fn what_is_given_belongs_to_owner_or_person(
        owner in 0u32..4, person in 0u32..4, root: bool,
        uids in proptest::collection::vec(0u32..4, 0..3), gids in proptest::collection::vec(0u32..4, 0..3),
    ) {
        let caller = Caller { ids: ids(person, &[]), root };
        if permitted(&ids(owner, &[]), &caller, &claims(&uids, &gids)).is_ok() && !(root && owner == 0) {
            for id in uids.iter().chain(&gids) {
                prop_assert!((*id == owner && root) || *id == person);
                prop_assert!(*id != 0 || (person == 0 && !root));
            }
        }
    }
}
