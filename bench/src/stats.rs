//! Medians and spread.

/// A sorted copy.
fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// The value below which this part of them lies; between two, as much of each as it is near to it.
/// Nothing of nothing is zero.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let values = sorted(values);
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let at = part * last as f64;
    let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The least, the quartiles, and the most of some values.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) lower: f64,
    pub(crate) median: f64,
    pub(crate) upper: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Spread {
        let at = |part| quantile(values, part);
        Spread { least: at(0.0), lower: at(0.25), median: at(0.5), upper: at(0.75), most: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), 2.5);
        assert_eq!(quantile(&values, 0.25), 1.75);
        let spread = Spread::of(&values);
        assert_eq!((spread.least, spread.most), (1.0, 4.0));
        assert_eq!(median(&[]), 0.0);
    }
}
