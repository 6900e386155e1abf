//! The settings of a session that are Aubade's own, `SET aubade.name = value`.

use std::any::Any;
use std::fmt;
use std::str::FromStr;

use datafusion::common::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::common::config_err;
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

/// Small beside a request's limit of 16 MiB, and beside what such joins save.
const BROADCAST_BYTES: usize = 1 << 20;
/// What a request has room for, beside the sets of keys of other joins.
const BROADCAST_BYTES_MAX: usize = 3 << 20;

/// Times by which tables and estimates may change before a plan that is kept is made again.
const REPLAN_FACTOR: u64 = 10;

/// Aubade's own settings.
///
/// Written out, since the macro of DataFusion leaves the prefix out of the names, and `SHOW` would not find them.
#[derive(Clone, Debug)]
pub struct AubadeOptions {
    /// What of a query may run at storage nodes.
    pub pushdown: Pushdown,
    /// Bytes of the build sides of joins up to which these run at storage nodes, where that saves bytes; 0: never.
    pub broadcast_bytes: usize,
    /// Whether storage nodes and the coordinator keep what aggregates and first rows leave of segments for the next time.
    pub fragment_cache: bool,
    /// Whether plans of queries are kept for the next time.
    pub plan_cache: bool,
    /// Times by which the rows of a table, or those that a scan is thought to give, may be others than those that a kept
    /// plan was made for, before a query is planned again.
    pub replan_factor: u64,
    /// Whether scans use the buffer pool, and fill it.
    pub buffer_pool: bool,
    /// Whether storage nodes send columns in the bytes that they need. For measurements.
    pub wire_encoding: bool,
}

impl Default for AubadeOptions {
    fn default() -> Self {
        Self {
            pushdown: Pushdown::default(),
            broadcast_bytes: BROADCAST_BYTES,
            fragment_cache: true,
            plan_cache: true,
            replan_factor: REPLAN_FACTOR,
            buffer_pool: true,
            wire_encoding: true,
        }
    }
}

impl ConfigExtension for AubadeOptions {
    const PREFIX: &'static str = "aubade";
}

impl ExtensionOptions for AubadeOptions {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "pushdown" => self.pushdown = value.parse()?,
            "broadcast_bytes" => self.broadcast_bytes = bytes(key, value, BROADCAST_BYTES_MAX)?,
            "fragment_cache" => self.fragment_cache = switch(key, value)?,
            "buffer_pool" => self.buffer_pool = switch(key, value)?,
            "plan_cache" => self.plan_cache = switch(key, value)?,
            "replan_factor" => self.replan_factor = factor(key, value)?,
            "wire_encoding" => self.wire_encoding = switch(key, value)?,
            _ => return config_err!("there is no setting aubade.{key}; SHOW ALL lists the settings"),
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let entry = |name: &str, value: String, description| ConfigEntry {
            key: format!("{}.{name}", Self::PREFIX),
            value: Some(value),
            description,
        };
        vec![
            entry("pushdown", self.pushdown.to_string(), "What of a query may run at storage nodes: auto, on or off"),
            entry(
                "broadcast_bytes",
                self.broadcast_bytes.to_string(),
                "Bytes of the build sides of joins up to which these run at storage nodes, where that saves bytes; 0: never",
            ),
            entry(
                "fragment_cache",
                self.fragment_cache.to_string(),
                "Whether storage nodes and the coordinator keep what aggregates and first rows leave of segments for the next time",
            ),
            entry("plan_cache", self.plan_cache.to_string(), "Whether plans of queries are kept for the next time"),
            entry(
                "replan_factor",
                self.replan_factor.to_string(),
                "Times by which the rows of tables may change before a plan that is kept is made again",
            ),
            entry(
                "buffer_pool",
                self.buffer_pool.to_string(),
                "Whether scans use the buffer pool of the coordinator, and fill it",
            ),
            entry(
                "wire_encoding",
                self.wire_encoding.to_string(),
                "Whether storage nodes send columns in the bytes that they need, instead of in their own types",
            ),
        ]
    }
}

fn switch(key: &str, value: &str) -> Result<bool> {
    match value.to_lowercase().as_str() {
        "true" | "on" => Ok(true),
        "false" | "off" => Ok(false),
        _ => config_err!("aubade.{key} is on or off, and not '{value}'"),
    }
}

fn factor(key: &str, value: &str) -> Result<u64> {
    match value.parse() {
        Ok(times) if times > 0 => Ok(times),
        _ => config_err!("aubade.{key} is a whole number of at least 1, and not '{value}'"),
    }
}

fn bytes(key: &str, value: &str, max: usize) -> Result<usize> {
    match value.parse() {
        Ok(bytes) if bytes <= max => Ok(bytes),
        _ => config_err!("aubade.{key} is a number of bytes from 0 to {max}, and not '{value}'"),
    }
}

/// Bytes of build sides that are sent to storage nodes, by the settings of the session.
pub(crate) fn broadcast_bytes(config: &ConfigOptions) -> usize {
    config.extensions.get::<AubadeOptions>().map_or(BROADCAST_BYTES, |options| options.broadcast_bytes)
}

/// What of a plan may run at storage nodes, by the settings of its session.
pub(crate) fn pushdown(config: &ConfigOptions) -> Pushdown {
    config.extensions.get::<AubadeOptions>().map_or_else(Pushdown::default, |options| options.pushdown)
}

/// Whether nodes and the coordinator may keep results of fragments, by the settings of the session.
pub fn fragment_cache_enabled(config: &ConfigOptions) -> bool {
    config.extensions.get::<AubadeOptions>().is_none_or(|options| options.fragment_cache)
}

/// Whether plans are kept, by the settings of the session.
pub fn plan_cache_enabled(config: &ConfigOptions) -> bool {
    config.extensions.get::<AubadeOptions>().is_none_or(|options| options.plan_cache)
}

/// Times by which tables may change before plans are made again, by the settings of the session.
pub fn replan_factor(config: &ConfigOptions) -> u64 {
    config.extensions.get::<AubadeOptions>().map_or(REPLAN_FACTOR, |options| options.replan_factor)
}

/// Whether scans use the buffer pool, by the settings of the session.
pub fn buffer_pool_enabled(config: &ConfigOptions) -> bool {
    config.extensions.get::<AubadeOptions>().is_none_or(|options| options.buffer_pool)
}

/// Whether columns are sent in the bytes that they need, by the settings of the session.
pub fn wire_encoding_enabled(config: &ConfigOptions) -> bool {
    config.extensions.get::<AubadeOptions>().is_none_or(|options| options.wire_encoding)
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
        assert_eq!(replan_factor(&options), 10);
        options.set("aubade.replan_factor", "3").unwrap();
        assert_eq!(replan_factor(&options), 3);
        for value in ["0", "-1", "2.5", "many"] {
            let error = options.set("aubade.replan_factor", value).unwrap_err();
            assert!(error.to_string().contains("a whole number of at least 1"), "{error}");
        }
        options.set("aubade.broadcast_bytes", "0").unwrap();
        assert_eq!(broadcast_bytes(&options), 0);
        let error = options.set("aubade.broadcast_bytes", "4 MiB").unwrap_err();
        assert!(error.to_string().contains("a number of bytes from 0 to 3145728, and not '4 MiB'"), "{error}");
    }
}
