//! A plot of allocation and fragmentation against arrived load, as SVG.

use std::fmt::Write;

use super::report::{Load, Mean, Report};

/// Colours that people who see fewer of them can tell apart (Okabe and Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 340.0;
/// Room around a panel for its title and the numbers of its axes.
const MARGIN: f64 = 56.0;

struct Panel<'a> {
    title: &'a str,
    left: f64,
    until: f64,
    value: fn(&Load) -> Mean,
}

/// Two panels beside each other and the names below.
pub(super) fn svg(reports: &[Report], until: u32) -> String {
    let (width, height) = (2.0 * (WIDTH + 1.5 * MARGIN), HEIGHT + 2.0 * MARGIN + 24.0 * reports.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let panels = [
        Panel {
            title: "Allocated, % of all GPUs",
            left: MARGIN,
            until: until.into(),
            value: |load| load.allocation_percent,
        },
        Panel {
            title: "Fragmented, % of the idle GPUs",
            left: WIDTH + 2.5 * MARGIN,
            until: until.into(),
            value: |load| load.fragmentation_percent,
        },
    ];
    for panel in &panels {
        panel.axes(&mut svg);
        for (report, colour) in reports.iter().zip(COLOURS.iter().cycle()) {
            panel.line(&mut svg, report, colour);
        }
    }
    for (i, (report, colour)) in reports.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let y = MARGIN + HEIGHT + 44.0 + 24.0 * i as f64;
        let (name, left) = (report.policy, report.unallocated_gpus.mean);
        put(
            &mut svg,
            format_args!(
                "<rect x=\"{MARGIN}\" y=\"{:.0}\" width=\"24\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"{y:.0}\">{name}: {left:.0} GPUs left over</text>\n",
                y - 6.0,
                MARGIN + 34.0
            ),
        );
    }
    svg + "</svg>\n"
}

/// Writing to a string cannot fail.
fn put(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("a string takes every text");
}

impl Panel<'_> {
    fn x(&self, percent: f64) -> f64 {
        self.left + WIDTH * percent / self.until
    }

    fn y(percent: f64) -> f64 {
        MARGIN + HEIGHT * (1.0 - percent / 100.0)
    }

    fn axes(&self, svg: &mut String) {
        let (left, right) = (self.left, self.left + WIDTH);
        put(
            svg,
            format_args!("<text x=\"{left}\" y=\"{:.0}\" font-size=\"15\">{}</text>\n", MARGIN - 16.0, self.title),
        );
        for percent in (0..=100).step_by(20) {
            let y = Self::y(percent.into());
            put(
                svg,
                format_args!(
                    "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#dddddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent}</text>\n",
                    left - 6.0,
                    y + 4.0
                ),
            );
        }
        // Ten marks at most, at round numbers.
        let step = [10, 20, 50, 100].into_iter().find(|step| self.until / f64::from(*step) <= 14.0).unwrap_or(100);
        for percent in (0..=self.until as u32).step_by(step as usize) {
            let x = self.x(percent.into());
            put(
                svg,
                format_args!(
                    "<text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{percent}</text>\n",
                    MARGIN + HEIGHT + 18.0
                ),
            );
        }
        put(
            svg,
            format_args!(
                "<text x=\"{right}\" y=\"{:.0}\" text-anchor=\"end\">arrived, % of all GPUs</text>\n",
                MARGIN + HEIGHT + 36.0
            ),
        );
    }

    fn line(&self, svg: &mut String, report: &Report, colour: &str) {
        let points = report.loads.iter().map(|load| {
            let (x, y) = (self.x(load.arrived_percent.into()), Self::y((self.value)(load).mean.clamp(0.0, 100.0)));
            format!("{x:.1},{y:.1}")
        });
        let points = points.collect::<Vec<_>>().join(" ");
        put(
            svg,
            format_args!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n"),
        );
    }
}

#[cfg(test)]
mod tests {
    use toft_model::schedule::{
        place::Policy,
        replay::{Outcome, Point},
    };

    use super::*;

    #[test]
    fn every_policy_has_a_line_in_both_panels() {
        let points = vec![Point { allocation: 50.0, fragmentation: 20.0 }; 131];
        let run = (Outcome { points, arrived: 1, dropped: (0, 0), moves: 0 }, 1.0);
        let reports: Vec<Report> =
            Policy::ALL.into_iter().map(|policy| Report::new(policy, 8.0, std::slice::from_ref(&run), None)).collect();
        let svg = svg(&reports, 130);
        assert_eq!(svg.matches("<polyline").count(), 2 * Policy::ALL.len());
        assert!(Policy::ALL.iter().all(|policy| svg.contains(&format!(">{policy}: 4 GPUs left over<"))));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
        assert_eq!(
            (svg.matches('<').count(), svg.matches("<text").count()),
            (svg.matches('>').count(), svg.matches("</text>").count())
        );
    }
}
