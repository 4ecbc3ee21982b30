//! Cards that a specification names as devices, in the way of the Container Device Interface: `nvidia.com/gpu=0`.

use super::WorkloadSpec;
use crate::{
    gpu::{GpuAmount, GpuRequest},
    invalid::Invalid,
};

impl WorkloadSpec {
    /// The same with the cards that `process.devices` names asked for in `gpus`, so that there is one account of who has which
    /// card.
    pub fn with_named_gpus(mut self) -> Result<Self, Invalid> {
        let mut wanted: Option<GpuRequest> = None;
        let mut others = Vec::new();
        for (i, device) in std::mem::take(&mut self.process.devices).into_iter().enumerate() {
            let at = |error: Invalid| error.at(&format!("process.devices[{i}].host"));
            let Some(request) = device.cdi().and_then(|name| name.request()) else {
                others.push(device);
                continue;
            };
            let request = request.map_err(at)?;
            if self.gpus.is_some() {
                let message = format!("`{}` is a GPU, and `gpus` asks for some already", device.host);
                return Err(at(Invalid::value(message, "ask for all of them in `gpus`, or for all in `devices`")));
            }
            if device.inside.is_some() || device.access.is_some() {
                let message = format!("`{}` is given as its specification says", device.host);
                return Err(at(Invalid::value(message, "leave out `inside` and `access`")));
            }
            wanted = Some(match wanted {
                None => request,
                Some(known) => both(known, request).map_err(at)?,
            });
        }
        self.process.devices = others;
        self.gpus = wanted.or(self.gpus);
        Ok(self)
    }
}

/// One request for what two ask for.
fn both(one: GpuRequest, other: GpuRequest) -> Result<GpuRequest, Invalid> {
    if one.vendor != other.vendor {
        let message = "GPUs of two vendors are named";
        return Err(Invalid::value(
            message,
            "name those of one vendor, or all in `gpus` by what `toft gpu ls` calls them",
        ));
    }
    if one.amount == GpuAmount::All || other.amount == GpuAmount::All {
        return Ok(GpuRequest { vendor: one.vendor, ..GpuRequest::all() });
    }
    let mut devices = one.devices;
    devices.extend(other.devices);
    let count = devices.len();
    devices.sort();
    devices.dedup();
    if devices.len() < count {
        return Err(Invalid::value("a GPU is named twice", "name each once"));
    }
    if count > GpuRequest::MAX_CARDS as usize {
        let message = format!("{count} GPUs are named");
        return Err(Invalid::value(message, format!("name at most {}", GpuRequest::MAX_CARDS)));
    }
    let amount = GpuAmount::Cards(u32::try_from(count).unwrap_or(u32::MAX));
    Ok(GpuRequest { amount, devices, vendor: one.vendor, ..GpuRequest::cards(1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::DeviceMapping;

    fn spec(gpus: Option<&str>, devices: &[&str]) -> WorkloadSpec {
        let mut spec = WorkloadSpec::new("llm".parse().unwrap(), "ollama/ollama".parse().unwrap());
        spec.gpus = gpus.map(|text| text.parse().unwrap());
        spec.process.devices = devices.iter().map(|text| text.parse().unwrap()).collect();
        spec
    }

    #[test]
    fn named_cards_are_asked_for_and_other_devices_stay() {
        let check = |devices: &[&str], gpus: &str, left: &[&str]| {
            let spec = spec(None, devices).with_named_gpus().unwrap();
            assert_eq!(spec.gpus.as_ref().map(ToString::to_string).unwrap_or_default(), gpus, "{devices:?}");
            let hosts: Vec<_> = spec.process.devices.iter().map(|device| device.host.as_str()).collect();
            assert_eq!(hosts, left, "{devices:?}");
            spec.validate().unwrap();
            assert_eq!(spec.clone().with_named_gpus().unwrap(), spec, "twice is once");
        };
        check(&["/dev/fuse", "acme.com/fpga=a:1"], "", &["/dev/fuse", "acme.com/fpga=a:1"]);
        check(&["nvidia.com/gpu=1", "/dev/fuse", "nvidia.com/gpu=0"], "nvidia,device=0,device=1", &["/dev/fuse"]);
        check(&["nvidia.com/gpu=1", "nvidia.com/gpu=all"], "nvidia:all", &[]);
        check(&["amd.com/gpu=0"], "amd,device=0", &[]);
        let kept = spec(Some("vram=8GiB"), &["acme.com/fpga=0"]).with_named_gpus().unwrap();
        assert_eq!(kept.gpus.unwrap().to_string(), "vram=8GiB");
    }

    #[test]
    fn what_cannot_be_counted_is_refused_with_a_remedy() {
        let refused = |spec: WorkloadSpec| {
            let error = spec.with_named_gpus().unwrap_err();
            assert!(!error.hint.is_empty());
            (error.field, error.message)
        };
        let (field, message) = refused(spec(Some("1"), &["/dev/fuse", "nvidia.com/gpu=0"]));
        assert!(field == "process.devices[1].host" && message.contains("`gpus` asks for some already"), "{message}");
        assert!(refused(spec(None, &["nvidia.com/gpu=0", "amd.com/gpu=0"])).1.contains("two vendors"));
        assert!(refused(spec(None, &["nvidia.com/gpu=0", "nvidia.com/gpu=0"])).1.contains("twice"));
        assert!(refused(spec(None, &["nvidia.com/gpu=first"])).1.contains("names no GPU"));
        let mut inside = spec(None, &[]);
        inside.process.devices =
            vec![DeviceMapping { host: "nvidia.com/gpu=0".into(), inside: Some("/dev/x".into()), access: None }];
        assert!(refused(inside).1.contains("as its specification says"));
        for bad in ["nvidia.com/gpu=0:1:rw", "acme.com/fpga=", "a=b", "acme.com/fpga=x y", "../x=1", "a/b=\0"] {
            let parsed = bad.parse::<DeviceMapping>();
            let counted = parsed.is_ok_and(|device| device.cdi().is_some_and(|name| name.request().is_none()));
            assert!(!counted, "{bad}");
        }
    }
}
