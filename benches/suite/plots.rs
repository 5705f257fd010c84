//! The plots of the report, as SVG.

use super::measure::{Board, Spread, digits};
use super::stage::Outcome;
use plotters::prelude::*;
use std::path::Path;

/// verfs; native; everybody else.
const COLOURS: [RGBColor; 3] = [RGBColor(0xc0, 0x39, 0x2b), RGBColor(0x2c, 0x3e, 0x50), RGBColor(0x95, 0xa5, 0xa6)];
const WIDTH: u32 = 760;

/// A plot, with the name of its file.
#[derive(Debug)]
pub enum Plot {
    /// A bar for each contender, and the spread over it.
    Bars { file: String, title: String, axis: String, bars: Vec<(String, Spread)> },
    /// A line for each contender, over milliseconds.
    Lines { file: String, title: String, axis: String, lines: Vec<(String, Vec<(f64, f64)>)> },
}

impl Plot {
    /// The ratios of all contenders to the base of a board.
    pub fn ratios(file: &str, board: &Board, measure: &str) -> Plot {
        let ratio = |name: &String| Some((name.clone(), board.ratio(name, measure)?));
        Plot::Bars {
            file: file.to_owned(),
            title: format!("{}: {measure}", board.title),
            axis: format!("{measure}, {} = 1", board.base),
            bars: board.contenders.iter().filter_map(ratio).collect(),
        }
    }

    pub fn file(&self) -> &str {
        match self {
            Plot::Bars { file, .. } | Plot::Lines { file, .. } => file,
        }
    }

    pub fn title(&self) -> &str {
        match self {
            Plot::Bars { title, .. } | Plot::Lines { title, .. } => title,
        }
    }

    pub fn draw(&self, to: &Path) -> Outcome<()> {
        match self {
            Plot::Bars { title, axis, bars, .. } => draw_bars(to, title, axis, bars),
            Plot::Lines { title, axis, lines, .. } => draw_lines(to, title, axis, lines),
        }
    }
}

fn colour(contender: &str) -> RGBColor {
    match contender {
        name if name.starts_with("verfs") => COLOURS[0],
        "native" | "symlink" => COLOURS[1],
        _ => COLOURS[2],
    }
}

fn draw_bars(to: &Path, title: &str, axis: &str, bars: &[(String, Spread)]) -> Outcome<()> {
    // With one row, or a figure that is none, plotters looks for labels for ever.
    let rows = bars.len().max(2);
    let bars: Vec<_> = bars.iter().filter(|(_, spread)| spread.most.is_finite()).collect();
    let area = SVGBackend::new(to, (WIDTH, 90 + 28 * rows as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let most = bars.iter().map(|(_, spread)| spread.most).fold(1.0, f64::max) * 1.12;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..most, (0..rows - 1).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(rows)
        .y_label_formatter(&|at| match at {
            // The first contender stands on top.
            SegmentValue::CenterOf(at) => bars.get(rows - 1 - at).map_or(String::new(), |(name, _)| name.clone()),
            _ => String::new(),
        })
        .x_desc(axis)
        .draw()?;
    for (number, (name, spread)) in bars.iter().enumerate() {
        let at = rows - 1 - number;
        let mut bar = Rectangle::new(
            [(0.0, SegmentValue::Exact(at)), (spread.median, SegmentValue::Exact(at + 1))],
            colour(name).filled(),
        );
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar])?;
        let middle = || SegmentValue::CenterOf(at);
        chart.draw_series([PathElement::new(vec![(spread.least, middle()), (spread.most, middle())], BLACK)])?;
        chart.draw_series([Text::new(
            format!("  {}", digits(spread.median)),
            (spread.most, middle()),
            ("sans-serif", 12),
        )])?;
    }
    area.present()?;
    Ok(())
}

fn draw_lines(to: &Path, title: &str, axis: &str, lines: &[(String, Vec<(f64, f64)>)]) -> Outcome<()> {
    let area = SVGBackend::new(to, (WIDTH, 320)).into_drawing_area();
    area.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|(_, points)| points);
    // An empty range has no labels, and plotters looks for some for ever.
    let (first, last) = points().fold((0.0_f64, 1.0_f64), |(first, last), (x, _)| (first.min(*x), last.max(*x)));
    let most = points().map(|(_, y)| *y).filter(|y| y.is_finite()).fold(1e-9, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(first..last, 0.0..most)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("milliseconds from the switch").y_desc(axis).draw()?;
    for (name, points) in lines {
        let colour = colour(name);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).background_style(WHITE).draw()?;
    area.present()?;
    Ok(())
}
