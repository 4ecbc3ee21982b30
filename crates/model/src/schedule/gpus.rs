//! Which GPUs of a node an instance can have.

use std::collections::HashMap;

use super::{rules::allows_card, topology};
use crate::{
    gpu::{Gpu, GpuAmount, GpuHold, GpuId, GpuPolicy, GpuRequest, GpuSettings, GpuSettingsOf},
    state::NodeRow,
    units::format_bytes,
    workload::WorkloadSpec,
};

/// A node's cards and what users say of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cards<'a> {
    cards: &'a [Gpu],
    settings: &'a GpuSettingsOf,
}

impl<'a> Cards<'a> {
    /// Of a node.
    pub(super) fn of(node: &'a NodeRow) -> Self {
        Self { cards: &node.inventory.gpus, settings: &node.gpus }
    }
}

/// What the instances of one node hold of its GPUs.
#[derive(Debug, Clone, Default)]
pub(super) struct GpuClaims(HashMap<GpuId, Held>);

/// Of one card.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    whole: bool,
    shared_mib: u64,
}

impl GpuClaims {
    /// An instance has these from now on.
    pub(super) fn add(&mut self, holds: &[GpuHold]) {
        for GpuHold { gpu, vram_mib } in holds {
            let held = self.0.entry(gpu.clone()).or_default();
            match vram_mib {
                None => held.whole = true,
                Some(mib) => held.shared_mib += u64::from(*mib),
            }
        }
    }

    /// Whether every one of `holds` is there and free among `cards`.
    pub(super) fn allow(&self, holds: &[GpuHold], cards: Cards<'_>) -> bool {
        holds.iter().enumerate().all(|(i, hold)| {
            let twice = holds[..i].iter().any(|other| other.gpu == hold.gpu);
            let card = cards.cards.iter().find(|card| card.id == hold.gpu);
            !twice && card.is_some_and(|card| self.room(card, hold.vram_mib, cards).is_ok())
        })
    }

    /// Those among `cards` that `wanted` gets, in their order; else why it gets none.
    pub(super) fn choose(
        &self,
        wanted: &GpuRequest,
        cards: Cards<'_>,
        constrained: &dyn Fn(&Gpu) -> Result<(), String>,
    ) -> Result<Vec<GpuHold>, String> {
        let share = match wanted.amount {
            GpuAmount::Share(mib) => Some(mib),
            GpuAmount::Cards(_) | GpuAmount::All => None,
        };
        let (mut free, mut why) = (Vec::new(), Vec::new());
        let mut allowed = 0;
        for (place, card) in cards.cards.iter().enumerate() {
            let refused = |reason: String| format!("GPU {place}: {reason}");
            if let Err(reason) = wanted.allows(cards.cards, place).and_then(|()| constrained(card)) {
                why.push(refused(reason));
                continue;
            }
            // Of a card in parts only the parts are given.
            allowed += usize::from(!in_parts(card, cards));
            match self.room(card, share, cards) {
                Ok(left) => free.push((left, card)),
                Err(reason) => why.push(refused(reason)),
            }
        }
        let count = match wanted.amount {
            GpuAmount::Share(_) => 1,
            GpuAmount::Cards(count) => count as usize,
            GpuAmount::All => allowed.max(1),
        };
        if cards.cards.is_empty() {
            return Err("it has no GPU".into());
        }
        if free.len() < count {
            let begin = format!("`{wanted}` is wanted and {} of {} GPUs can be given", free.len(), cards.cards.len());
            return Err(if why.is_empty() { begin } else { format!("{begin} ({})", why.join(", ")) });
        }
        let chosen: Vec<&Gpu> = match share {
            // The fullest, so that others stay whole.
            Some(_) => free.iter().min_by_key(|(left, _)| *left).map(|(_, card)| *card).into_iter().collect(),
            None => topology::choose(&free.iter().map(|(_, card)| *card).collect::<Vec<_>>(), count),
        };
        Ok(chosen.into_iter().map(|card| GpuHold { gpu: card.id.clone(), vram_mib: share }).collect())
    }

    /// How full the cards of `holds` are once they are given, 0 to 1: for shares the card's memory, for whole cards how many of the
    /// node's `cards` somebody then has.
    pub(super) fn fullness(&self, holds: &[GpuHold], cards: Cards<'_>) -> f64 {
        let shares = holds
            .iter()
            .filter_map(|hold| Some((cards.cards.iter().find(|card| card.id == hold.gpu)?, hold.vram_mib?)));
        let of_shares = shares.map(|(card, mib)| {
            let held = self.0.get(&card.id).map_or(0, |held| held.shared_mib);
            (held + u64::from(mib)) as f64 / f64::from(card.memory_mib.max(1))
        });
        match of_shares.reduce(f64::max) {
            Some(fullest) => fullest.min(1.0),
            None => 1.0 - self.free_cards(cards).saturating_sub(holds.len()) as f64 / cards.cards.len().max(1) as f64,
        }
    }

    /// How many of `cards` nobody has anything of.
    pub(super) fn free_cards(&self, cards: Cards<'_>) -> usize {
        cards.cards.iter().filter(|card| self.room(card, None, cards).is_ok()).count()
    }

    /// The memory in MiB that is left on all of `cards` together.
    pub(super) fn free_mib(&self, cards: Cards<'_>) -> u64 {
        cards.cards.iter().filter_map(|card| self.room(card, Some(0), cards).ok()).sum()
    }

    /// The memory in MiB that is left on `card`, one of `cards`, for who wants `share` of it or all; else why it has none.
    fn room(&self, card: &Gpu, share: Option<u32>, cards: Cards<'_>) -> Result<u64, String> {
        if let Some(sick) = &card.sick {
            return Err(format!("it takes no work: {sick}"));
        }
        let GpuSettings { policy, cordoned } = cards.settings.of(&card.id);
        let of_parent = card.parent.as_ref().is_some_and(|parent| cards.settings.of(parent).cordoned);
        if cordoned || of_parent {
            return Err("it is cordoned".into());
        }
        if in_parts(card, cards) || (policy == GpuPolicy::Mig && card.parent.is_none()) {
            return Err("only its MIG devices are given".into());
        }
        let held = self.0.get(&card.id).copied().unwrap_or_default();
        if held.whole {
            return Err("it is held whole".into());
        }
        if policy == GpuPolicy::Exclusive && held.shared_mib > 0 {
            return Err("it is held, and its policy is exclusive".into());
        }
        let (memory, outside) = (u64::from(card.memory_mib), u64::from(card.outside_mib));
        let left = memory.saturating_sub(outside).saturating_sub(held.shared_mib);
        let amount = |mib: u64| format_bytes(mib << 20);
        match share {
            Some(wanted) if u64::from(wanted) > left => Err(match outside {
                0 => format!("{} are left", amount(left)),
                outside => format!("{} are left, {} are used outside toft", amount(left), amount(outside)),
            }),
            None if held.shared_mib > 0 => Err("it is shared".into()),
            None if outside > (memory / 10).max(WHOLE_THOUGH_MIB) => {
                Err(format!("{} are used outside toft", amount(outside)))
            }
            Some(_) | None => Ok(left),
        }
    }
}

fn in_parts(card: &Gpu, cards: Cards<'_>) -> bool {
    cards.cards.iter().any(|part| part.parent.as_ref() == Some(&card.id))
}

/// A card counts as whole although so much of it, in MiB, or a tenth is used outside toft: a desktop takes some.
const WHOLE_THOUGH_MIB: u64 = 1_024;

/// Whether every held card is there and well.
pub(super) fn are_there(holds: &[GpuHold], cards: &[Gpu]) -> bool {
    let well = |hold: &GpuHold| cards.iter().any(|card| card.id == hold.gpu && card.sick.is_none());
    holds.iter().all(well)
}

/// Whether an instance that has `holds` of a node's `cards` has what `spec` asks for. It has not when a card is gone or sick.
pub(super) fn serve(holds: &[GpuHold], spec: &WorkloadSpec, cards: &[Gpu]) -> bool {
    let Some(wanted) = &spec.gpus else { return holds.is_empty() };
    let well = |hold: &GpuHold| {
        let found = cards.iter().enumerate().find(|(_, card)| card.id == hold.gpu);
        found.is_some_and(|(place, card)| {
            card.sick.is_none() && wanted.allows(cards, place).is_ok() && allows_card(spec, card).is_ok()
        })
    };
    let amount = match wanted.amount {
        GpuAmount::Share(mib) => holds.len() == 1 && holds[0].vram_mib == Some(mib),
        GpuAmount::Cards(count) => holds.len() == count as usize && holds.iter().all(|hold| hold.vram_mib.is_none()),
        GpuAmount::All => !holds.is_empty() && holds.iter().all(|hold| hold.vram_mib.is_none()),
    };
    amount && holds.iter().all(well)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::made;

    fn card(place: u32) -> Gpu {
        made::card(&format!("GPU-{place}"), "NVIDIA GeForce RTX 4090", 24_564)
    }

    fn asking(gpus: Option<&str>) -> WorkloadSpec {
        WorkloadSpec {
            gpus: gpus.map(|text| text.parse().unwrap()),
            ..crate::state::tests::cluster::spec("web", "demo")
        }
    }

    fn chosen(claims: &GpuClaims, wanted: &str, cards: &[Gpu]) -> Result<String, String> {
        chosen_with(claims, wanted, cards, &GpuSettingsOf::default())
    }

    fn chosen_with(
        claims: &GpuClaims,
        wanted: &str,
        cards: &[Gpu],
        settings: &GpuSettingsOf,
    ) -> Result<String, String> {
        let all = Cards { cards, settings };
        let holds = claims.choose(&wanted.parse().unwrap(), all, &|_| Ok(()))?;
        assert!(claims.allow(&holds, all) && serve(&holds, &asking(Some(wanted)), cards));
        let show =
            |hold: &GpuHold| format!("{}{}", hold.gpu, hold.vram_mib.map(|mib| format!("={mib}")).unwrap_or_default());
        Ok(holds.iter().map(show).collect::<Vec<_>>().join(" "))
    }

    fn hold(place: u32, vram_mib: Option<u32>) -> GpuHold {
        GpuHold { gpu: format!("GPU-{place}").parse().unwrap(), vram_mib }
    }

    #[test]
    fn whole_cards_and_shares_are_kept_apart() {
        let cards = [card(0), card(1), card(2)];
        let mut claims = GpuClaims::default();
        assert_eq!(chosen(&claims, "2", &cards), Ok("GPU-0 GPU-1".into()));
        claims.add(&[hold(0, None)]);
        assert_eq!(chosen(&claims, "vram=8GiB", &cards), Ok("GPU-1=8192".into()));
        claims.add(&[hold(2, Some(20_000))]);
        assert_eq!(chosen(&claims, "vram=4GiB", &cards), Ok("GPU-2=4096".into()), "the fullest");
        assert_eq!(chosen(&claims, "vram=8GiB", &cards), Ok("GPU-1=8192".into()));
        assert_eq!(
            chosen(&claims, "2", &cards),
            Err("`2` is wanted and 1 of 3 GPUs can be given (GPU 0: it is held whole, GPU 2: it is shared)".into())
        );
        assert_eq!(chosen(&claims, "device=1", &cards), Ok("GPU-1".into()));
        assert_eq!(chosen(&claims, "1", &[]), Err("it has no GPU".into()));
        let allowed =
            |holds: &[GpuHold]| claims.allow(holds, Cards { cards: &cards, settings: &GpuSettingsOf::default() });
        assert!(!allowed(&[hold(0, Some(1))]) && !allowed(&[hold(7, None)]));
        assert!(!allowed(&[hold(1, None), hold(1, None)]), "one card twice");
    }

    #[test]
    fn what_is_used_outside_counts() {
        let mut cards = [card(0)];
        let claims = GpuClaims::default();
        cards[0].outside_mib = 2_048;
        assert_eq!(chosen(&claims, "1", &cards), Ok("GPU-0".into()), "a desktop takes some");
        cards[0].outside_mib = 8_192;
        let why = chosen(&claims, "1", &cards).unwrap_err();
        assert!(why.ends_with("(GPU 0: 8.0 GiB are used outside toft)"), "{why}");
        assert_eq!(chosen(&claims, "vram=15GiB", &cards), Ok("GPU-0=15360".into()));
        assert!(chosen(&claims, "vram=16GiB", &cards).is_err());
    }

    #[test]
    fn sick_cards_and_cards_in_parts_are_not_given() {
        let mut cards = [card(0), card(1), card(2)];
        cards[0].sick = Some("Xid 79: it has fallen off the bus".into());
        cards[2].parent = Some("GPU-1".parse().unwrap());
        let claims = GpuClaims::default();
        assert_eq!(chosen(&claims, "1", &cards), Ok("GPU-2".into()));
        assert_eq!(chosen(&claims, "all", &cards).unwrap_err().matches("GPU").count(), 3);
        cards[0].sick = None;
        assert_eq!(chosen(&claims, "all", &cards), Ok("GPU-0 GPU-2".into()), "a card in parts is given by its parts");
        cards[0].sick = Some("hot".into());
        assert!(!serve(&[hold(0, None)], &asking(Some("1")), &cards), "it fell ill");
        assert!(!serve(&[hold(9, None)], &asking(Some("1")), &cards), "it is gone");
        assert!(serve(&[hold(2, None)], &asking(Some("1")), &cards));
        assert!(!serve(&[hold(2, None)], &asking(None), &cards) && serve(&[], &asking(None), &[]));
    }

    #[test]
    fn users_say_how_cards_are_given() {
        let cards = [card(0), card(1)];
        let say = |settings: GpuSettings| GpuSettingsOf([(cards[0].id.clone(), settings)].into());
        let mut claims = GpuClaims::default();
        let exclusive = say(GpuSettings { policy: GpuPolicy::Exclusive, cordoned: false });
        assert_eq!(chosen_with(&claims, "vram=1GiB,device=0", &cards, &exclusive), Ok("GPU-0=1024".into()));
        claims.add(&[hold(0, Some(1024))]);
        let why = chosen_with(&claims, "vram=1GiB,device=0", &cards, &exclusive).unwrap_err();
        assert!(why.contains("GPU 0: it is held, and its policy is exclusive"), "{why}");
        assert_eq!(chosen_with(&claims, "vram=1GiB", &cards, &exclusive), Ok("GPU-1=1024".into()));

        let cordoned = say(GpuSettings { policy: GpuPolicy::Shared, cordoned: true });
        let claims = GpuClaims::default();
        assert_eq!(chosen_with(&claims, "1", &cards, &cordoned), Ok("GPU-1".into()));
        assert!(serve(&[hold(0, None)], &asking(Some("1")), &cards), "what runs there runs on");
        let mig = say(GpuSettings { policy: GpuPolicy::Mig, cordoned: false });
        let why = chosen_with(&claims, "2", &cards, &mig).unwrap_err();
        assert!(why.contains("GPU 0: only its MIG devices are given"), "{why}");

        let mut parts = cards.clone();
        parts[1].parent = Some(cards[0].id.clone());
        assert_eq!(chosen_with(&claims, "1", &parts, &mig), Ok("GPU-1".into()));
        let why = chosen_with(&claims, "1", &parts, &cordoned).unwrap_err();
        assert_eq!(why.matches("it is cordoned").count(), 2, "{why}");
    }
}
