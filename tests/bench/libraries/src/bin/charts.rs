//! Draws the figures of `tests/bench/peers` as SVG.
//!
//! `charts FIGURES.json FOLDER`

use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::full_palette::{
    BLUE_500, BROWN_500, GREEN_600, GREY_600, ORANGE_700, PURPLE_500, TEAL_500,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;
use std::error::Error;
use std::path::Path;

/// What was measured; a figure that was not is absent.
#[derive(Deserialize)]
struct Figures {
    #[serde(default)]
    processor: Vec<Panel>,
    #[serde(default)]
    latency: Vec<Line>,
    #[serde(default)]
    memory: Vec<Bar>,
    #[serde(default)]
    connections: Vec<Line>,
    #[serde(default)]
    peers: Vec<Line>,
}

#[derive(Deserialize)]
struct Panel {
    title: String,
    bars: Vec<Bar>,
}

#[derive(Deserialize)]
struct Bar {
    name: String,
    value: f64,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// What a chart of lines says beside them.
struct Axes {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    label: fn(&f64) -> String,
    /// Of the values; that of what they depend on is.
    is_logarithmic: bool,
}

/// The library whose line is drawn above the others.
const OURS: &str = "cubenet";
const FONT: &str = "sans-serif";
const SIZE: (u32, u32) = (820, 440);

type Drawn = Result<(), Box<dyn Error>>;

fn main() -> Drawn {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [figures, folder] = &words[..] else {
        return Err("usage: charts FIGURES.json FOLDER".into());
    };
    let figures: Figures = serde_json::from_str(&std::fs::read_to_string(figures)?)?;
    let file = |name: &str| Path::new(folder).join(name);
    if !figures.processor.is_empty() {
        panels(&file("processor.svg"), &figures.processor)?;
    }
    if !figures.memory.is_empty() {
        let title = "Resident memory of an idle connection, in bytes".to_owned();
        let panel = Panel {
            title,
            bars: figures.memory,
        };
        panels(&file("memory.svg"), &[panel])?;
    }
    // A quantile as how many messages there are to one that took longer: 0.99 is 1 in 100.
    let latency: Vec<Line> = figures.latency.into_iter().map(one_in).collect();
    let axes = Axes {
        title: "Time until the answer, 20,000 messages a second on 64 connections",
        x: "percentile",
        y: "µs, since the message was due",
        label: |one_in| format!("{}", 100.0 - 100.0 / one_in),
        is_logarithmic: true,
    };
    lines(&file("latency.svg"), &axes, &latency)?;
    let axes = Axes {
        title: "Processor time of a message, by TCP connections",
        x: "connections, each with one message of 64 bytes on its way",
        y: "ns of the server's processor",
        label: thousands,
        is_logarithmic: false,
    };
    lines(&file("connections.svg"), &axes, &figures.connections)?;
    let axes = Axes {
        title: "Processor time of a datagram, by UDP peers",
        x: "peers, one message of 64 bytes each in turn",
        y: "ns of the server's processor",
        label: thousands,
        is_logarithmic: false,
    };
    lines(&file("peers.svg"), &axes, &figures.peers)
}

fn one_in(line: Line) -> Line {
    let points = line
        .points
        .iter()
        .map(|(quantile, took)| (1.0 / (1.0 - quantile), *took));
    Line {
        points: points.collect(),
        name: line.name,
    }
}

fn thousands(count: &f64) -> String {
    match *count {
        count if count >= 1e6 => format!("{}M", count / 1e6),
        count if count >= 1e3 => format!("{}k", count / 1e3),
        count => format!("{count}"),
    }
}

/// A library has one colour in all charts.
fn colour(name: &str) -> RGBColor {
    match name {
        OURS => RED,
        "tokio" => BLUE_500,
        "Asio" => GREEN_600,
        "libuv" => ORANGE_700,
        "message-io" => PURPLE_500,
        "Netty" => TEAL_500,
        "Erlang" => BROWN_500,
        "ENet" => BLACK,
        _ => GREY_600,
    }
}

/// Bars from left to right, a panel above another; each has its own scale.
fn panels(file: &Path, panels: &[Panel]) -> Drawn {
    let height = |panel: &Panel| 22 * (panel.bars.len() as u32 + 2);
    let area = SVGBackend::new(file, (SIZE.0, panels.iter().map(height).sum())).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |side| TextStyle::from((FONT, 14)).pos(Pos::new(side, VPos::Center));
    let mut rest = area.clone();
    for panel in panels {
        let (top, below) = rest.split_vertically(height(panel));
        rest = below;
        let most = panel.bars.iter().map(|bar| bar.value).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&top)
            .margin(4)
            .margin_left(110)
            .caption(&panel.title, (FONT, 16))
            .build_cartesian_2d(0.0..most * 1.15, panel.bars.len() as f64..0.0)?;
        for (row, bar) in panel.bars.iter().enumerate() {
            let middle = row as f64 + 0.5;
            let corners = [(0.0, middle - 0.38), (bar.value, middle + 0.38)];
            chart.draw_series([Rectangle::new(corners, colour(&bar.name).filled())])?;
            let (left, y) = chart.backend_coord(&(0.0, middle));
            area.draw(&Text::new(
                bar.name.clone(),
                (left - 8, y),
                text(HPos::Right),
            ))?;
            let (right, y) = chart.backend_coord(&(bar.value, middle));
            area.draw(&Text::new(
                format!("{:.0}", bar.value),
                (right + 6, y),
                text(HPos::Left),
            ))?;
        }
    }
    area.present()?;
    Ok(())
}

/// Lines over a logarithmic axis; none, if nothing was measured.
fn lines(file: &Path, axes: &Axes, lines: &[Line]) -> Drawn {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MAX, f64::min);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MIN, f64::max);
    if points().next().is_none() {
        return Ok(());
    }
    let across = least(&mut points().map(|(x, _)| x))..most(&mut points().map(|(x, _)| x)) * 1.05;
    let (bottom, top) = (
        least(&mut points().map(|(_, y)| y)),
        most(&mut points().map(|(_, y)| y)),
    );
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area);
    chart
        .margin(10)
        .margin_right(20)
        .caption(axes.title, (FONT, 16))
        .x_label_area_size(45)
        .y_label_area_size(65);
    if axes.is_logarithmic {
        let up = (bottom * 0.8..top * 1.25).log_scale();
        series(
            chart.build_cartesian_2d(across.log_scale(), up)?,
            axes,
            lines,
        )?;
    } else {
        let up = 0.0..top * 1.4;
        series(
            chart.build_cartesian_2d(across.log_scale(), up)?,
            axes,
            lines,
        )?;
    }
    area.present()?;
    Ok(())
}

fn series<'a, Y>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<LogCoord<f64>, Y>>,
    axes: &Axes,
    lines: &[Line],
) -> Drawn
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 14))
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&axes.label)
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    for line in lines {
        let colour = colour(&line.name);
        let width = if line.name == OURS { 3 } else { 2 };
        chart
            .draw_series(LineSeries::new(
                line.points.iter().copied(),
                colour.stroke_width(width),
            ))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        let dots = line
            .points
            .iter()
            .map(|point| Circle::new(*point, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    // Once more, above those that run along it.
    for line in lines.iter().filter(|line| line.name == OURS) {
        let style = colour(&line.name).stroke_width(3);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(GREY_600)
        .label_font((FONT, 13))
        .draw()?;
    Ok(())
}
