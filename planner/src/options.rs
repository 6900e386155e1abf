//! The settings of a session that are Aubade's own, `SET aubade.name = value`.

use std::fmt;
use std::str::FromStr;

use datafusion::common::config::{ConfigExtension, ConfigField, ConfigOptions, Visit};
use datafusion::common::{config_err, extensions_options};
use datafusion::error::{DataFusionError, Result};

/// What of a plan may run at storage nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pushdown {
    /// What saves work, by the statistics of the tables.
    #[default]
    Auto,
    /// All that can run there, whether it saves work or not.
    On,
    /// Nothing: storage nodes send columns. For measurements.
    Off,
}

impl fmt::Display for Pushdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl FromStr for Pushdown {
    type Err = DataFusionError;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "on" | "true" => Ok(Self::On),
            "off" | "false" => Ok(Self::Off),
            _ => config_err!("aubade.pushdown is auto, on or off, and not '{text}'"),
        }
    }
}

impl ConfigField for Pushdown {
    fn visit<V: Visit>(&self, visitor: &mut V, key: &str, description: &'static str) {
        visitor.some(key, self, description);
    }

    fn set(&mut self, _key: &str, value: &str) -> Result<()> {
        *self = value.parse()?;
        Ok(())
    }
}

extensions_options! {
    /// Aubade's own settings.
    pub struct AubadeOptions {
        /// What of a query may run at storage nodes: auto, on or off
        pub pushdown: Pushdown, default = Pushdown::Auto
    }
}

impl ConfigExtension for AubadeOptions {
    const PREFIX: &'static str = "aubade";
}

/// What of a plan may run at storage nodes, by the settings of its session.
pub(crate) fn pushdown(config: &ConfigOptions) -> Pushdown {
    config.extensions.get::<AubadeOptions>().map_or_else(Pushdown::default, |options| options.pushdown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_refused() {
        let mut options = ConfigOptions::new();
        options.extensions.insert(AubadeOptions::default());
        assert_eq!(pushdown(&options), Pushdown::Auto);
        options.set("aubade.pushdown", "OFF").unwrap();
        assert_eq!(pushdown(&options), Pushdown::Off);
        let error = options.set("aubade.pushdown", "sideways").unwrap_err();
        assert!(error.to_string().contains("auto, on or off"), "{error}");
    }
}
