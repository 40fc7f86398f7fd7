//! Conditional writes are linearizable, with plain writes and deletes in between: random walks through messages lost, late
//! and doubled, crashes, copies, collected tombstones and changes of layout; and a search through everything that can
//! happen to few operations. Each rule is shown to be needed: without it a history is found that no order explains.

#[path = "cas_support/history.rs"]
mod history;
#[path = "cas_support/world.rs"]
mod world;

use history::If;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use world::{Action, Broken, Layout, Plan, World};

/// A small generator of numbers: the same seed, the same walk.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as usize % below.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

fn layouts() -> [Layout; 5] {
    let same = |nodes: Vec<usize>| Layout { old: nodes.clone(), new: nodes };
    [
        same(vec![0, 1, 2]),
        same(vec![0, 1, 2, 3, 4]),
        Layout { old: vec![0, 1, 2], new: vec![1, 2, 3] },
        Layout { old: vec![0, 1, 2], new: vec![3, 4, 5] },
        Layout { old: vec![0], new: vec![0, 1, 2] },
    ]
}

fn any_plan(dice: &mut Dice, i: usize) -> Plan {
    let new = Some(10 + i as u8);
    let (when, new) = match dice.roll(10) {
        0 | 1 => (If::Always, new),
        2 => (If::Always, None),
        3 | 4 => (If::Absent, new),
        5 => (If::Never, None),
        6 => (If::Is(10 + dice.roll(5) as u8), None),
        _ => (If::Is(10 + dice.roll(5) as u8), new),
    };
    Plan { when, new, clock: dice.roll(12) as u64 }
}

/// The kind of a mishap.
fn kind(action: Action) -> usize {
    match action {
        Action::Drop(_) => 0,
        Action::Deliver { .. } => 1,
        Action::Silent { .. } => 2,
        Action::GiveUp(_) => 3,
        Action::Copy { .. } => 4,
        Action::Crash(_) => 5,
        Action::Forget(_) => 6,
        _ => 7,
    }
}

/// One random walk of these operations, or of any. The world at its end.
fn walk(broken: Broken, seed: u64, layout: Layout, plans: Option<&[Plan]>) -> World {
    let mut dice = Dice(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1);
    let any: Vec<Plan> = (0..3 + dice.roll(4)).map(|i| any_plan(&mut dice, i)).collect();
    let plans = plans.unwrap_or(&any);
    let mut world = World::new(broken, layout, plans, false, 5);
    let (rough, moving, patience) = (2 + dice.roll(12), 2 + dice.roll(20), 1 + dice.roll(12));
    // Not every walk has every kind of mishap: some need many of one kind and none of another.
    let kinds = dice.roll(1 << 8) | dice.roll(1 << 8);
    for _ in 0..60 + dice.roll(300) {
        let moves = world.moves();
        let mishaps: Vec<Action> =
            world.mishaps().into_iter().filter(|action| kinds & 1 << kind(*action) != 0).collect();
        let usual = world.actions();
        let action = if dice.roll(rough) == 0 && !mishaps.is_empty() {
            dice.pick(&mishaps)
        } else if dice.roll(moving) == 0 && !moves.is_empty() {
            dice.pick(&moves)
        } else if usual.is_empty() {
            continue;
        } else {
            dice.pick(&usual)
        };
        // An operation that is not begun yet waits for its turn most of the time.
        if matches!(action, Action::Start(_)) && dice.roll(patience) > 0 {
            continue;
        }
        world.apply(action);
        if broken == Broken::Nothing {
            world.check_reads();
        }
    }
    world
}

/// The first seed whose walk no order explains.
fn find(broken: Broken, layouts: &[Layout], plans: Option<&[Plan]>, seeds: u64) -> Option<u64> {
    (1..=seeds).find(|seed| {
        let layout = layouts[*seed as usize % layouts.len()].clone();
        !walk(broken, *seed, layout, plans).is_linearizable()
    })
}

/// All walks of these seeds.
fn check(seeds: std::ops::Range<u64>) {
    let mut outcomes = [0; 3];
    for layout in layouts() {
        for seed in seeds.clone() {
            let world = walk(Broken::Nothing, seed, layout.clone(), None);
            assert!(world.is_linearizable(), "seed {seed} of {layout:?}: {:#?}", world.history());
            outcomes.iter_mut().zip(world.outcomes()).for_each(|(sum, n)| *sum += n);
        }
    }
    println!("operations done, failed, unknown: {outcomes:?}");
    assert!(outcomes.iter().all(|n| *n > 2000), "{outcomes:?}");
}

#[test]
fn every_walk_is_linearizable() {
    check(1..4000);
}

/// Takes minutes: `cargo test --release -p hayloft-common --test cas_register -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn every_walk_of_very_many_is_linearizable() {
    check(4000..1_000_000);
}

#[test]
fn each_rule_is_needed() {
    let all = layouts();
    let (stable, moving) = (&all[..1], &all[2..4]);
    // A create whose clock is ahead, a plain write whose clock is behind, a read after both.
    let clocks = |create, put, read| {
        [plan(If::Absent, 10, create), plan(If::Always, 11, put), plan(If::Never, 12, read)]
    };
    let (far, near) = (clocks(9, 0, 12), clocks(5, 1, 9));
    for (broken, layouts, plans) in [
        (Broken::PlainIgnoresPromises, stable, None),
        (Broken::NoNewerRowCheck, stable, None),
        (Broken::PromiseNotDurable, stable, None),
        (Broken::NoWriteBack, stable, None),
        (Broken::SettledByCopies, stable, Some(&near[..])),
        (Broken::NoLineage, stable, None),
        (Broken::PlainAgain, stable, None),
        (Broken::ForgetAnyway, stable, None),
        (Broken::ReleaseUsed, stable, None),
        (Broken::SyncRowsOnly, moving, Some(&far[..2])),
        (Broken::OneSet, moving, None),
    ] {
        let seed = find(broken, layouts, plans, 1_000_000);
        println!("{broken:?}: {seed:?}");
        assert!(seed.is_some(), "{broken:?} is not found");
    }
}

/// Visits every state that few operations on three replicas can come to. The number of states.
fn search(plans: &[Plan], tries: u8) -> usize {
    let layout = Layout { old: vec![0, 1, 2], new: vec![0, 1, 2] };
    let mut open = vec![World::new(Broken::Nothing, layout, plans, true, tries)];
    let mut seen = BTreeSet::new();
    while let Some(world) = open.pop() {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            continue;
        }
        assert!(world.is_linearizable(), "{plans:?}: {:#?}", world.history());
        for action in world.actions() {
            let mut next = world.clone();
            next.apply(action);
            next.tidy();
            open.push(next);
        }
    }
    seen.len()
}

fn plan(when: If, new: u8, clock: u64) -> Plan {
    Plan { when, new: Some(new), clock }
}

#[test]
fn everything_that_can_happen_to_a_create_and_a_plain_write_is_linearizable() {
    let states = search(&[plan(If::Absent, 1, 2), plan(If::Always, 2, 1)], 1);
    assert!(states > 10_000, "{states}");
}

/// Takes minutes, as above.
#[test]
#[ignore = "takes minutes"]
fn everything_that_can_happen_to_two_operations_is_linearizable() {
    for (a, b) in [(1, 2), (2, 1)] {
        for other in [plan(If::Absent, 2, b), plan(If::Always, 2, b), plan(If::Never, 2, b)] {
            println!("{:?}: {} states", other.when, search(&[plan(If::Absent, 1, a), other], 2));
        }
    }
}
