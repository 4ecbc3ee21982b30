//! What is left of a node's GPUs: the only place that knows it. Instances hold cards; this says what the engine may give of each.

use std::collections::HashMap;

use super::{
    place::{self, CardSet, Gpus, Kind},
    rules::allows_card,
    topology,
};
use crate::{
    gpu::{Gpu, GpuAmount, GpuHold, GpuId, GpuPolicy, GpuRequest, GpuSettings, GpuSettingsOf},
    state::NodeRow,
    units::format_bytes,
    workload::WorkloadSpec,
};

/// A node's cards and what users say of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cards<'a> {
    pub(super) cards: &'a [Gpu],
    settings: &'a GpuSettingsOf,
}

impl<'a> Cards<'a> {
    /// Of a node.
    pub(super) fn of(node: &'a NodeRow) -> Self {
        Self { cards: &node.inventory.gpus, settings: &node.gpus }
    }

    /// Whether it is cut into MIG devices.
    pub(super) fn is_in_parts(&self, card: &Gpu) -> bool {
        self.cards.iter().any(|part| part.parent.as_ref() == Some(&card.id))
    }

    /// Why nobody gets anything of a card, whoever holds it.
    fn out_of_service(&self, card: &Gpu) -> Option<String> {
        if let Some(sick) = &card.sick {
            return Some(format!("it takes no work: {sick}"));
        }
        let GpuSettings { policy, cordoned } = self.settings.of(&card.id);
        let of_parent = card.parent.as_ref().is_some_and(|parent| self.settings.of(parent).cordoned);
        if cordoned || of_parent {
            return Some("it is cordoned".into());
        }
        let only_parts = self.is_in_parts(card) || (policy == GpuPolicy::Mig && card.parent.is_none());
        only_parts.then(|| "only its MIG devices are given".into())
    }
}

/// What a request takes, in the engine's terms.
pub(super) fn amount(wanted: &GpuRequest) -> Gpus {
    match wanted.amount {
        GpuAmount::Share(mib) => Gpus::Share(mib),
        GpuAmount::Cards(count) => Gpus::Whole(u16::try_from(count).unwrap_or(u16::MAX)),
        GpuAmount::All => Gpus::All,
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

    fn held(&self, card: &Gpu) -> Held {
        self.0.get(&card.id).copied().unwrap_or_default()
    }

    /// What is left of one of `cards`, in MiB; `kind` is what it counts as.
    pub(super) fn card(&self, card: &Gpu, kind: Kind, cards: Cards<'_>) -> place::Card {
        if cards.out_of_service(card).is_some() {
            return place::Card { kind, capacity: 0, free: 0 };
        }
        let held = self.held(card);
        let exclusive = cards.settings.of(&card.id).policy == GpuPolicy::Exclusive;
        let inside = card.memory_mib.saturating_sub(card.outside_mib);
        // A card whose memory nobody tells can be given whole.
        let capacity = if is_whole(card) { inside.max(1) } else { card.memory_mib };
        let free = match held {
            Held { whole: false, shared_mib: 0 } if is_whole(card) => capacity,
            Held { whole: false, shared_mib } if !exclusive || shared_mib == 0 => {
                inside.saturating_sub(u32::try_from(shared_mib).unwrap_or(u32::MAX))
            }
            Held { .. } => 0,
        };
        place::Card { kind, capacity, free }
    }

    /// The same of all, in their order; `kinds` are theirs.
    pub(super) fn deck(&self, cards: Cards<'_>, kinds: &[Kind]) -> Vec<place::Card> {
        cards.cards.iter().zip(kinds).map(|(card, kind)| self.card(card, *kind, cards)).collect()
    }

    /// Whether every one of `holds` is there and free among `cards`.
    pub(super) fn allow(&self, holds: &[GpuHold], cards: Cards<'_>) -> bool {
        holds.iter().enumerate().all(|(i, hold)| {
            let twice = holds[..i].iter().any(|other| other.gpu == hold.gpu);
            let found = cards.cards.iter().find(|card| card.id == hold.gpu);
            let fits = found.is_some_and(|card| {
                let wanted = hold.vram_mib.map_or(Gpus::Whole(1), Gpus::Share);
                self.card(card, Kind::default(), cards).serves(wanted)
            });
            !twice && fits
        })
    }

    /// Why the node's cards do not do for `wanted`, card by card; `None` when they do. What `constrained` refuses is not looked
    /// at further.
    pub(super) fn refusal(
        &self,
        wanted: &GpuRequest,
        cards: Cards<'_>,
        constrained: &dyn Fn(&Gpu) -> Result<(), String>,
    ) -> Option<String> {
        let gpus = amount(wanted);
        let (mut free, mut allowed, mut why) = (0, 0, Vec::new());
        for (place, card) in cards.cards.iter().enumerate() {
            let allows = wanted.allows(cards.cards, place).and_then(|()| constrained(card));
            // Of a card in parts only the parts are given.
            allowed += usize::from(allows.is_ok() && !cards.is_in_parts(card));
            match allows.and_then(|()| self.room(card, gpus, cards)) {
                Ok(()) => free += 1,
                Err(reason) => why.push(format!("GPU {place}: {reason}")),
            }
        }
        let count = match gpus {
            Gpus::None => 0,
            Gpus::Share(_) => 1,
            Gpus::Whole(count) => usize::from(count),
            Gpus::All => allowed.max(1),
        };
        if cards.cards.is_empty() {
            return Some("it has no GPU".into());
        }
        if free >= count {
            return None;
        }
        let begin = format!("`{wanted}` is wanted and {free} of {} GPUs can be given", cards.cards.len());
        Some(if why.is_empty() { begin } else { format!("{begin} ({})", why.join(", ")) })
    }

    /// Whether one of `cards` can be given; else why not.
    fn room(&self, card: &Gpu, wanted: Gpus, cards: Cards<'_>) -> Result<(), String> {
        let left = self.card(card, Kind::default(), cards);
        if left.serves(wanted) {
            return Ok(());
        }
        if let Some(why) = cards.out_of_service(card) {
            return Err(why);
        }
        let held = self.held(card);
        let amount = |mib: u32| format_bytes(u64::from(mib) << 20);
        Err(match wanted {
            _ if held.whole => "it is held whole".into(),
            _ if held.shared_mib > 0 && cards.settings.of(&card.id).policy == GpuPolicy::Exclusive => {
                "it is held, and its policy is exclusive".into()
            }
            Gpus::Share(_) if card.outside_mib == 0 => format!("{} are left", amount(left.free)),
            Gpus::Share(_) => {
                format!("{} are left, {} are used outside toft", amount(left.free), amount(card.outside_mib))
            }
            _ if held.shared_mib > 0 => "it is shared".into(),
            _ => format!("{} are used outside toft", amount(card.outside_mib)),
        })
    }
}

/// How many cards nobody has anything of.
pub(super) fn idle(deck: &[place::Card]) -> usize {
    deck.iter().filter(|card| card.is_idle()).count()
}

/// Whether a card can be given whole.
fn is_whole(card: &Gpu) -> bool {
    card.outside_mib <= (card.memory_mib / 10).max(WHOLE_THOUGH_MIB)
}

/// A card counts as whole although so much of it, in MiB, or a tenth is used outside toft: a desktop takes some.
const WHOLE_THOUGH_MIB: u32 = 1_024;

/// As many of a node's cards as are `given`, among the places that `suit`: those that have the best ways to each other.
pub(super) fn together(cards: &[Gpu], given: CardSet, suit: &[usize]) -> CardSet {
    let free: Vec<&Gpu> = suit.iter().filter_map(|place| cards.get(*place)).collect();
    let chosen = topology::choose(&free, given.iter().count());
    cards
        .iter()
        .enumerate()
        .filter(|(_, card)| chosen.iter().any(|one| one.id == card.id))
        .map(|(place, _)| place)
        .collect()
}

/// What is held of the cards at these places by who wants `wanted`.
pub(super) fn holds_of(wanted: &GpuRequest, cards: &[Gpu], places: place::CardSet) -> Vec<GpuHold> {
    let vram_mib = match wanted.amount {
        GpuAmount::Share(mib) => Some(mib),
        GpuAmount::Cards(_) | GpuAmount::All => None,
    };
    places.iter().filter_map(|place| Some(GpuHold { gpu: cards.get(place)?.id.clone(), vram_mib })).collect()
}

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
        let wanted: GpuRequest = wanted.parse().unwrap();
        if let Some(why) = claims.refusal(&wanted, all, &|_| Ok(())) {
            return Err(why);
        }
        let kinds = vec![Kind::default(); cards.len()];
        let node = place::Node { cards: claims.deck(all, &kinds), ..place::Node::default() };
        let allowed = (0..cards.len()).filter(|place| wanted.allows(cards, *place).is_ok());
        let holds = holds_of(&wanted, cards, node.tightest(amount(&wanted), allowed.collect()));
        let wanted = &wanted.to_string();
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
