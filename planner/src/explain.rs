//! Text forms of scans and plans, stable enough for snapshots.

use std::fmt;
use std::sync::Arc;

use aubade_proto::{Reduction, ReductionKind};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, InListExpr};
use datafusion::physical_expr_common::physical_expr::fmt_sql;
use datafusion::physical_plan::{ExecutionPlan, displayable};

use crate::rewrite::compose::is_identity;
use crate::scan_exec::StorageScanExec;
use crate::scan_metrics::NodeCounters;

/// Values of a list that are shown.
const VALUES_SHOWN_MAX: usize = 10;

/// An expression, of whose long lists only the first values are shown. Who tells plans apart by their texts has to look
/// at the expression itself.
fn sql(expression: &Arc<dyn PhysicalExpr>) -> String {
    let short = Arc::clone(expression).transform_up(|part| {
        let list = part.downcast_ref::<InListExpr>().filter(|list| list.list().len() > VALUES_SHOWN_MAX);
        Ok(match list.map(short_list) {
            // A column is shown by its name.
            Some(text) => Transformed::yes(Arc::new(Column::new(&text, 0)) as Arc<dyn PhysicalExpr>),
            None => Transformed::no(part),
        })
    });
    let short = short.map_or_else(|_| Arc::clone(expression), |short| short.data);
    fmt_sql(short.as_ref()).to_string()
}

fn short_list(list: &InListExpr) -> String {
    let shown: Vec<_> = list.list().iter().take(VALUES_SHOWN_MAX).map(sql).collect();
    let not = if list.negated() { " NOT" } else { "" };
    let more = list.list().len().saturating_sub(shown.len());
    format!("{}{not} IN ({}, ... and {more} more)", sql(list.expr()), shown.join(", "))
}

fn columns(scan: &StorageScanExec) -> String {
    let fields = scan.fragment().scan_schema().fields();
    fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

fn projection(scan: &StorageScanExec) -> Option<String> {
    let fragment = scan.fragment();
    let outputs = fragment.projection().iter().map(|output| {
        let text = sql(&output.expression);
        if text == output.name { text } else { format!("{text} as {}", output.name) }
    });
    (!is_identity(fragment)).then(|| outputs.collect::<Vec<_>>().join(", "))
}

/// What a scan does, in parts: the name of each and its text.
fn parts(scan: &StorageScanExec) -> Vec<(&'static str, String)> {
    let fragment = scan.fragment();
    let mut parts = vec![
        ("table", scan.table().name.to_string()),
        ("segments", format!("{}/{}", scan.kept_segments().len(), scan.table().segments.len())),
        ("columns", format!("[{}]", columns(scan))),
    ];
    parts.extend(fragment.filter().map(|filter| ("filter", sql(filter))));
    parts.extend(projection(scan).map(|projection| ("projection", format!("[{projection}]"))));
    parts.extend(fragment.reduction().map(|reduction| match reduction.kind() {
        ReductionKind::Aggregate => ("aggregate", reduction.describe()),
        ReductionKind::TopK => ("first rows", reduction.describe()),
    }));
    let order = fragment.reduction().and_then(Reduction::order);
    parts.extend(order.map(|order| ("of rows in the order", format!("[{order}]"))));
    let having = fragment.reduction().and_then(Reduction::having);
    parts.extend(having.map(|having| ("having", fmt_sql(having.as_ref()).to_string())));
    if !scan.runtime_filters().is_empty() {
        let filters: Vec<_> = scan.runtime_filters().iter().map(ToString::to_string).collect();
        parts.push(("at run time", format!("[{}]", filters.join(", "))));
    }
    parts.extend(fragment.limit().map(|limit| ("limit", limit.to_string())));
    parts.extend((scan.readers() > 1).then(|| ("read by", format!("{} places", scan.readers()))));
    parts
}

/// One line: what runs at storage nodes, and what does not and why.
pub(crate) fn scan_line(scan: &StorageScanExec) -> String {
    let mut texts: Vec<String> = parts(scan).into_iter().map(|(name, text)| format!("{name}={text}")).collect();
    if !scan.not_pushed().is_empty() {
        let notes: Vec<_> = scan.not_pushed().iter().map(ToString::to_string).collect();
        texts.push(format!("not pushed: {}", notes.join("; ")));
    }
    texts.join(", ")
}

/// [`scan_line`] with what only an administrator wants to know.
pub(crate) fn scan_line_verbose(scan: &StorageScanExec) -> String {
    let partition_count = scan.properties().output_partitioning().partition_count();
    let mut text = format!("{}, version={}, partitions={partition_count}", scan_line(scan), scan.snapshot().version);
    let nodes: Vec<String> = scan.scan_metrics().nodes().iter().map(node_text).collect();
    if !nodes.is_empty() {
        text.push_str(&format!(", nodes=[{}]", nodes.join("; ")));
    }
    text
}

/// What a node did, once the scan has run.
fn node_text(node: &NodeCounters) -> String {
    format!(
        "{}: requests={}, segments={}, rows_in={}, rows_out={}, bytes_read={}, bytes_wire={}, cpu={:?}, wait={:?}",
        node.address,
        node.requests,
        node.segments,
        node.rows_in,
        node.rows_out,
        node.bytes_read,
        node.bytes_wire,
        node.cpu,
        node.wait
    )
}

/// A line per part, for the tree format.
pub(crate) fn scan_tree(scan: &StorageScanExec, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (name, text) in parts(scan) {
        writeln!(f, "{name}={}", text.trim_start_matches('[').trim_end_matches(']'))?;
    }
    for note in scan.not_pushed() {
        writeln!(f, "not pushed={note}")?;
    }
    Ok(())
}

/// A plan, one operator per line.
pub fn plan_text(plan: &dyn ExecutionPlan) -> String {
    displayable(plan).indent(false).to_string()
}
