//! In which order a tree of processes is made: pure.
//!
//! fork(2) gives a child its parent's session, and nothing but setsid(2) changes a session. So a child that is in the
//! session which its parent has left must be born before the parent's setsid, all others after it. Orphans of a
//! session are born from a helper of its leader that ends at once. Leaders that are gone while their session or group
//! lives on are made for the time of the making. Groups come last, leaders before members.
//!
//! ```text
//!  Make ─▶ (Make children of the old session) ─▶ Session ─▶ Make the other children ─▶ … ─▶ Group, Group, …
//! ```

use std::collections::{HashMap, HashSet};

/// One process; ids are those that the program sees, 0 for one outside the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Node {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    /// What its end tells its parent, 0 for nothing: SIGCHLD but for children of clone(2) with another one.
    pub exit_signal: i32,
}

/// Who forks a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    Ourselves,
    /// The node with this index.
    Parent(usize),
    /// A helper of the session leader with this index.
    Within(usize),
}

/// What is done to the node with this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Make(usize, Maker),
    Session(usize),
    Group(usize),
}

/// A tree that no order of forks gives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "process {0} is in a session which no process that could make it is in; programs like this cannot be rebuilt"
)]
pub struct Impossible(pub i32);

/// Leaders of sessions and groups that are gone: they are made, and end before the program runs.
pub fn leaders(nodes: &[Node]) -> Vec<Node> {
    let mut all: Vec<Node> = Vec::new();
    let gone = Node { exit_signal: libc::SIGCHLD, ..Node::default() };
    let mut known: HashSet<i32> = nodes.iter().map(|n| n.pid).chain([0]).collect();
    for node in nodes {
        if known.insert(node.session) {
            let pid = node.session;
            all.push(Node { pid, group: pid, session: pid, ..gone });
        }
        if known.insert(node.group) {
            all.push(Node { pid: node.group, group: node.group, session: node.session, ..gone });
        }
    }
    all
}

/// The steps for `nodes`, which name no id that is not among them.
///
/// # Errors
/// The first process that cannot be made.
pub fn plan(nodes: &[Node]) -> Result<Vec<Step>, Impossible> {
    let places = places(nodes);
    let index = |pid: i32| places.get(&pid).copied();
    let born = births(nodes);
    let mut steps = Vec::with_capacity(nodes.len() * 2);
    // Of each: its session now; `None` while it is not there.
    let mut now: Vec<Option<i32>> = vec![None; nodes.len()];
    loop {
        let before = steps.len();
        for (i, node) in nodes.iter().enumerate() {
            let leads = node.session == node.pid;
            if now[i].is_none() {
                let maker = match (index(node.parent), index(born[i])) {
                    (Some(parent), _) => (now[parent] == Some(born[i])).then_some(Maker::Parent(parent)),
                    (None, Some(leader)) => (now[leader] == Some(born[i])).then_some(Maker::Within(leader)),
                    (None, None) => (born[i] == 0).then_some(Maker::Ourselves),
                };
                if let Some(maker) = maker {
                    steps.push(Step::Make(i, maker));
                    now[i] = Some(born[i]);
                }
            } else if leads && now[i] != Some(node.session) {
                let waits = |(j, child): (usize, &Node)| {
                    child.parent == node.pid && born[j] != node.session && now[j].is_none()
                };
                if !nodes.iter().enumerate().any(waits) {
                    steps.push(Step::Session(i));
                    now[i] = Some(node.session);
                }
            }
        }
        if steps.len() == before {
            break;
        }
    }
    if let Some(i) = (0..nodes.len()).find(|&i| now[i] != Some(nodes[i].session)) {
        return Err(Impossible(nodes[i].pid));
    }
    let moves = |leaders: bool| {
        let wanted = move |n: &Node| n.group != 0 && n.session != n.pid && (n.group == n.pid) == leaders;
        nodes.iter().enumerate().filter(move |(_, n)| wanted(n)).map(|(i, _)| Step::Group(i))
    };
    steps.extend(moves(true));
    steps.extend(moves(false));
    Ok(steps)
}

/// By id; the first where several have one.
fn places(nodes: &[Node]) -> HashMap<i32, usize> {
    nodes.iter().enumerate().rev().map(|(i, n)| (n.pid, i)).collect()
}

/// The session that each is born in. Only a leader has a choice: the one that its children, born before its setsid,
/// are in; else its parent's.
fn births(nodes: &[Node]) -> Vec<i32> {
    let mut born: Vec<i32> = nodes.iter().map(|n| n.session).collect();
    let places = places(nodes);
    let index = |pid: i32| places.get(&pid).copied();
    for (i, node) in nodes.iter().enumerate().filter(|(_, n)| n.session == n.pid) {
        born[i] = index(node.parent).map_or(0, |p| nodes[p].session);
    }
    // What a child needs of its parent, the parent may need of its own: as often as the tree is deep.
    for _ in 0..nodes.len() {
        let mut changed = false;
        for (j, child) in nodes.iter().enumerate() {
            let Some(parent) = index(child.parent) else { continue };
            let leads = nodes[parent].session == nodes[parent].pid;
            if leads && born[j] != nodes[parent].session && born[parent] != born[j] {
                // A leader is content with either of its parent's sessions.
                if child.session == child.pid && !needs(nodes, &born, child) {
                    born[j] = nodes[parent].session;
                } else {
                    born[parent] = born[j];
                }
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    born
}

/// Whether a leader has children that must be born before its setsid.
fn needs(nodes: &[Node], born: &[i32], leader: &Node) -> bool {
    nodes.iter().zip(born).any(|(child, &born)| child.parent == leader.pid && born != leader.session)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pid: i32, parent: i32, group: i32, session: i32) -> Node {
        Node { pid, parent, group, session, exit_signal: libc::SIGCHLD }
    }

    /// Carries the steps out on paper.
    fn check(nodes: &[Node]) -> Vec<Step> {
        let all: Vec<Node> = nodes.iter().copied().chain(leaders(nodes)).collect();
        let steps = plan(&all).unwrap();
        let mut made: Vec<Option<(i32, i32)>> = vec![None; all.len()];
        for step in &steps {
            match *step {
                Step::Make(i, Maker::Ourselves) => made[i] = Some((0, 0)),
                Step::Make(i, Maker::Parent(by) | Maker::Within(by)) => made[i] = made[by],
                Step::Session(i) => {
                    assert_ne!(made[i].unwrap().1, all[i].pid, "a group leader cannot call setsid");
                    made[i] = Some((all[i].pid, all[i].pid));
                }
                Step::Group(i) => {
                    let exists = made.iter().flatten().any(|m| *m == (made[i].unwrap().0, all[i].group));
                    assert!(all[i].group == all[i].pid || exists, "no group {} in the session", all[i].group);
                    made[i].as_mut().unwrap().1 = all[i].group;
                }
            }
        }
        for (node, made) in all.iter().zip(made) {
            assert_eq!(made, Some((node.session, node.group)), "{node:?} in {steps:?}");
        }
        steps
    }

    #[test]
    fn a_plain_tree() {
        let steps = check(&[node(5, 0, 0, 0), node(6, 5, 0, 0), node(7, 6, 0, 0)]);
        assert_eq!(steps[2], Step::Make(2, Maker::Parent(1)));
    }

    #[test]
    fn members_join_groups_whose_leader_comes_later() {
        check(&[node(5, 0, 0, 0), node(6, 5, 7, 0), node(7, 5, 7, 0), node(8, 6, 0, 0)]);
    }

    #[test]
    fn a_child_from_before_setsid_and_one_from_after() {
        check(&[node(5, 0, 5, 5), node(6, 5, 0, 0), node(7, 5, 7, 5), node(8, 7, 5, 5)]);
        // Two leaders in a row: the grandchild is of the session that both have left.
        check(&[node(5, 0, 5, 5), node(6, 5, 6, 6), node(7, 6, 0, 0)]);
    }

    #[test]
    fn orphans_whose_leader_lives_is_dead_or_is_no_leader() {
        check(&[node(5, 0, 5, 5), node(9, 0, 5, 5), node(10, 9, 10, 5)]);
        check(&[node(5, 0, 0, 0), node(9, 0, 8, 8)]);
        check(&[node(5, 0, 0, 0), node(9, 0, 4, 0), node(10, 5, 4, 0), node(11, 0, 3, 8)]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        // A subreaper inside the tree has adopted a process of another session.
        let nodes = [node(5, 0, 0, 0), node(6, 5, 6, 6), node(7, 5, 6, 6)];
        assert_eq!(plan(&nodes), Err(Impossible(7)));
    }
}
