//! Fragments: Arrow IPC for schemas, datafusion-proto for expressions.

use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::record_batch::RecordBatch;
use arrow_flight::{IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::utils::conjunction_opt;
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use datafusion_proto::physical_plan::from_proto::parse_physical_expr;
use datafusion_proto::physical_plan::to_proto::serialize_physical_expr;
use datafusion_proto::physical_plan::{AsExecutionPlan, DefaultPhysicalExtensionCodec};
use datafusion_proto::protobuf::physical_plan_node::PhysicalPlanType;
use datafusion_proto::protobuf::{PhysicalExprNode, PhysicalPlanNode};
use prost::Message;

use super::{guarded, required};
use crate::code::ErrorCode;
use crate::error::{Error, Result, ResultExt};
use crate::fragment::{Fragment, ProjectionColumn};
use crate::membership::{KeySet, Membership};
use crate::reduction::Reduction;
use crate::wire::storage as wire;

/// An Arrow schema as an IPC message.
///
/// # Errors
/// When a type has no IPC form.
pub fn encode_schema(schema: &Schema) -> Result<Bytes> {
    let message: IpcMessage = SchemaAsIpc::new(schema, &IpcWriteOptions::default())
        .try_into()
        .context(ErrorCode::Internal, || "an Arrow schema could not be encoded".to_owned())?;
    Ok(message.0)
}

/// The Arrow schema in an IPC message; `field` names it in the error.
///
/// # Errors
/// [`ErrorCode::InvalidMessage`] when it is no schema message.
pub fn decode_schema(bytes: &Bytes, field: &str) -> Result<SchemaRef> {
    let schema: Schema = IpcMessage(bytes.clone())
        .try_into()
        .context(ErrorCode::InvalidMessage, || format!("field {field} is no Arrow schema"))?;
    Ok(Arc::new(schema))
}

/// Levels of an expression that can be sent: prost decodes 100 levels of messages, and each level of
/// an expression takes two.
const EXPRESSION_DEPTH_MAX: usize = 45;

/// Levels that the operator around the expressions of a reduction takes.
const REDUCTION_LEVELS: usize = 5;

fn is_deeper_than(expression: &Arc<dyn PhysicalExpr>, levels: usize) -> bool {
    match levels.checked_sub(1) {
        None => true,
        Some(below) => expression.children().into_iter().any(|child| is_deeper_than(child, below)),
    }
}

fn encode_expression(expression: &Arc<dyn PhysicalExpr>) -> Result<Bytes> {
    if is_deeper_than(expression, EXPRESSION_DEPTH_MAX) {
        let text = format!("an expression is nested more than {EXPRESSION_DEPTH_MAX} levels deep");
        return Err(Error::new(ErrorCode::NotSupported, text));
    }
    // It would say which place of a plan has the value, and not what that is.
    if expression.exists(|part| Ok(part.is::<ScalarSubqueryExpr>()))? {
        let text = format!("expression {expression} needs a subquery, whose value has to be put in before it is sent");
        return Err(Error::new(ErrorCode::NotSupported, text));
    }
    let node = serialize_physical_expr(expression, &DefaultPhysicalExtensionCodec {})
        .context(ErrorCode::NotSupported, || format!("expression {expression} cannot be sent to a storage node"))?;
    Ok(node.encode_to_vec().into())
}

fn decode_expression(
    bytes: &[u8],
    schema: &Schema,
    functions: &TaskContext,
    field: &str,
) -> Result<Arc<dyn PhysicalExpr>> {
    let node = PhysicalExprNode::decode(bytes)
        .context(ErrorCode::InvalidMessage, || format!("field {field} is no expression"))?;
    parse_physical_expr(&node, functions, schema, &DefaultPhysicalExtensionCodec {}).map_err(|error| {
        Error::new(ErrorCode::NotSupported, format!("field {field} has an expression that this node does not know"))
            .source(error)
    })
}

fn encode_membership(membership: &Membership) -> Result<wire::Membership> {
    let set = match membership.set() {
        KeySet::Bitmap { first, bits } => {
            let bytes = Bytes::from(bits.sliced().into_vec::<u8>().unwrap_or_else(|shared| shared.as_slice().to_vec()));
            wire::membership::Set::Bitmap(wire::KeyBitmap { first: *first, count: bits.len() as u64, bits: bytes })
        }
        KeySet::Bloom(keys) => wire::membership::Set::Bloom(keys.bitset()?.into()),
    };
    Ok(wire::Membership { key: encode_expression(membership.key())?, set: Some(set) })
}

fn decode_membership(
    message: &wire::Membership,
    schema: &Schema,
    functions: &TaskContext,
) -> Result<Arc<dyn PhysicalExpr>> {
    let key = decode_expression(&message.key, schema, functions, "fragment.memberships.key")?;
    let key_type = key.data_type(schema)?;
    if !KeySet::supports(&key_type) {
        let text = format!("field fragment.memberships.key has type {key_type}, of which there are no sets");
        return Err(Error::new(ErrorCode::InvalidMessage, text));
    }
    let set = match required(message.set.as_ref(), "fragment.memberships.set")? {
        wire::membership::Set::Bitmap(bitmap) => KeySet::from_bitmap(bitmap.first, bitmap.count, bitmap.bits.clone())?,
        wire::membership::Set::Bloom(bitset) => KeySet::from_bloom(bitset)?,
    };
    Ok(Arc::new(Membership::new(key, set)))
}

fn encode_reduction(reduction: &Reduction) -> Result<Bytes> {
    let mut too_deep = false;
    reduction.plan().apply_expressions(&mut |expression| {
        too_deep |= is_deeper_than(expression, EXPRESSION_DEPTH_MAX - REDUCTION_LEVELS);
        Ok(TreeNodeRecursion::Continue)
    })?;
    if too_deep {
        let text = format!("an expression is nested more than {} levels deep", EXPRESSION_DEPTH_MAX - REDUCTION_LEVELS);
        return Err(Error::new(ErrorCode::NotSupported, text));
    }
    let codec = DefaultPhysicalExtensionCodec {};
    let mut node = PhysicalPlanNode::try_from_physical_plan(Arc::clone(reduction.plan()), &codec)
        .context(ErrorCode::NotSupported, || format!("{} cannot be sent to a storage node", reduction.plan().name()))?;
    // A filter that an operator fills while it runs has a number of its own in each plan, and a node makes another one.
    match &mut node.physical_plan_type {
        Some(PhysicalPlanType::Sort(sort)) => sort.dynamic_filter = None,
        Some(PhysicalPlanType::Aggregate(aggregate)) => aggregate.dynamic_filter = None,
        _ => {}
    }
    Ok(node.encode_to_vec().into())
}

fn decode_reduction(bytes: &[u8], functions: &TaskContext) -> Result<Reduction> {
    let node = PhysicalPlanNode::decode(bytes)
        .context(ErrorCode::InvalidMessage, || "field fragment.reduction is no plan".to_owned())?;
    // Looked at before it is turned into operators: other nodes of a plan can name files.
    let known = match &node.physical_plan_type {
        Some(PhysicalPlanType::Aggregate(aggregate)) => {
            let input = aggregate.input.as_deref();
            is_sorted_placeholder(input) || is_joined_placeholder(input)
        }
        Some(PhysicalPlanType::Sort(sort)) => is_placeholder(sort.input.as_deref()),
        _ => false,
    };
    if !known {
        let text = "field fragment.reduction is neither a partial aggregate nor a sort with a fetch over its rows";
        return Err(Error::new(ErrorCode::NotSupported, text));
    }
    let plan = node.try_into_physical_plan(functions, &DefaultPhysicalExtensionCodec {}).map_err(|error| {
        Error::new(ErrorCode::NotSupported, "field fragment.reduction has something that this node does not know")
            .source(error)
    })?;
    Reduction::try_from_plan(plan)
}

fn is_placeholder(node: Option<&PhysicalPlanNode>) -> bool {
    node.is_some_and(|node| matches!(node.physical_plan_type, Some(PhysicalPlanType::Empty(_))))
}

/// Whether a plan is a sort of all rows of a placeholder.
fn is_sorted_placeholder(node: Option<&PhysicalPlanNode>) -> bool {
    match node.and_then(|node| node.physical_plan_type.as_ref()) {
        // Without a fetch it is negative.
        Some(PhysicalPlanType::Sort(sort)) => sort.fetch < 0 && is_placeholder(sort.input.as_deref()),
        _ => false,
    }
}

/// Whether a plan is a placeholder, with nothing above it but projections, filters, and joins with other placeholders.
fn is_joined_placeholder(mut node: Option<&PhysicalPlanNode>) -> bool {
    while !is_placeholder(node) {
        node = match node.and_then(|node| node.physical_plan_type.as_ref()) {
            Some(PhysicalPlanType::Projection(projection)) => projection.input.as_deref(),
            Some(PhysicalPlanType::Filter(filter)) => filter.input.as_deref(),
            Some(PhysicalPlanType::HashJoin(join)) if is_placeholder(join.left.as_deref()) => join.right.as_deref(),
            _ => return false,
        };
    }
    true
}

/// A batch as an Arrow IPC stream.
fn encode_build(build: &RecordBatch) -> Result<Bytes> {
    let mut writer = StreamWriter::try_new(Vec::new(), build.schema_ref())?;
    writer.write(build)?;
    Ok(writer.into_inner()?.into())
}

fn decode_build(bytes: &Bytes) -> Result<RecordBatch> {
    let invalid = || "field fragment.builds has no Arrow IPC stream".to_owned();
    let decode = || {
        // It makes no buffer of a length that the stream only promises.
        let mut decoder = StreamDecoder::new();
        let mut rest = Buffer::from(bytes.clone());
        let mut batches = Vec::new();
        while let Some(batch) = decoder.decode(&mut rest)? {
            batches.push(batch);
        }
        decoder.finish()?;
        let schema = decoder.schema().ok_or_else(|| ArrowError::IpcError("there is no schema".to_owned()))?;
        let rows = batches.iter().map(RecordBatch::num_rows).fold(0, usize::saturating_add);
        if rows > bytes.len().saturating_mul(8) {
            return Err(ArrowError::IpcError(format!("{rows} rows in {} bytes", bytes.len())));
        }
        concat_batches(&schema, &batches)
    };
    guarded(decode, invalid)?.context(ErrorCode::InvalidMessage, invalid)
}

/// The wire form of a fragment.
///
/// # Errors
/// [`ErrorCode::NotSupported`] when an expression has no wire form; the planner asks this before it
/// pushes anything.
pub fn encode_fragment(fragment: &Fragment) -> Result<wire::Fragment> {
    let projection = fragment.projection().iter().map(|column| {
        Ok(wire::NamedExpression { expression: encode_expression(&column.expression)?, name: column.name.clone() })
    });
    let (mut filter, mut memberships) = (Vec::new(), Vec::new());
    for conjunct in fragment.filter().map(split_conjunction).unwrap_or_default() {
        match conjunct.downcast_ref::<Membership>() {
            Some(membership) => memberships.push(encode_membership(membership)?),
            None => filter.push(encode_expression(conjunct)?),
        }
    }
    let having = fragment.reduction().and_then(Reduction::having);
    let builds = fragment.reduction().map(Reduction::builds).unwrap_or_default();
    Ok(wire::Fragment {
        scan_schema: encode_schema(fragment.scan_schema())?,
        filter,
        projection: projection.collect::<Result<_>>()?,
        limit: fragment.limit(),
        memberships,
        reduction: fragment.reduction().map(encode_reduction).transpose()?.unwrap_or_default(),
        having: having.map(encode_expression).transpose()?.unwrap_or_default(),
        builds: builds.iter().map(encode_build).collect::<Result<_>>()?,
    })
}

/// The fragment in a message. `functions` holds the functions that this node knows.
///
/// # Errors
/// [`ErrorCode::InvalidMessage`] for bytes that cannot be read, [`ErrorCode::NotSupported`] for an
/// expression that is not known here.
pub fn decode_fragment(message: &wire::Fragment, functions: &TaskContext) -> Result<Fragment> {
    let schema = decode_schema(&message.scan_schema, "fragment.scan_schema")?;
    let conjuncts = message.filter.iter();
    let conjuncts = conjuncts.map(|bytes| decode_expression(bytes, &schema, functions, "fragment.filter"));
    let memberships = message.memberships.iter();
    let memberships = memberships.map(|membership| decode_membership(membership, &schema, functions));
    let filter = conjunction_opt(conjuncts.chain(memberships).collect::<Result<Vec<_>>>()?);
    let projection = message.projection.iter().map(|column| {
        let expression = decode_expression(&column.expression, &schema, functions, "fragment.projection")?;
        Ok(ProjectionColumn { expression, name: column.name.clone() })
    });
    let fragment = Fragment::try_new(Arc::clone(&schema), filter, projection.collect::<Result<_>>()?, message.limit)?;
    if message.reduction.is_empty() {
        return Ok(fragment);
    }
    let mut reduction = decode_reduction(&message.reduction, functions)?;
    reduction = reduction.with_builds(message.builds.iter().map(decode_build).collect::<Result<_>>()?)?;
    if !message.having.is_empty() {
        let schema = reduction.schema();
        reduction =
            reduction.with_having(decode_expression(&message.having, &schema, functions, "fragment.having")?)?;
    }
    fragment.with_reduction(reduction)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray};
    use arrow::datatypes::{DataType, Field};
    use datafusion::functions_aggregate::count::count_udaf;
    use datafusion::functions_aggregate::min_max::max_udaf;
    use datafusion::functions_aggregate::nth_value::nth_value_udaf;
    use datafusion::logical_expr::Operator;
    use datafusion::logical_expr::physical_planning_context::{ScalarSubqueryResults, SubqueryIndex};
    use datafusion::physical_expr::aggregate::AggregateExprBuilder;
    use datafusion::physical_expr::expressions::{binary, col, lit};
    use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
    use datafusion::physical_plan::ExecutionPlan;
    use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::physical_plan::sorts::sort::SortExec;
    use datafusion::prelude::SessionContext;

    use super::*;

    fn fragment() -> Fragment {
        let schema: SchemaRef = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Int64, false),
            Field::new("b", DataType::Utf8View, true),
        ]));
        let filter = binary(col("a", &schema).unwrap(), Operator::Gt, lit(7_i64), &schema).unwrap();
        let projection = vec![ProjectionColumn { expression: col("b", &schema).unwrap(), name: "x".to_owned() }];
        Fragment::try_new(schema, Some(filter), projection, Some(10)).unwrap()
    }

    #[test]
    fn a_fragment_comes_back_from_the_wire() {
        let sent = fragment();
        let context = SessionContext::new().task_ctx();
        let received = decode_fragment(&encode_fragment(&sent).unwrap(), &context).unwrap();
        assert_eq!(received.scan_schema(), sent.scan_schema());
        assert_eq!(received.output_schema(), sent.output_schema());
        assert_eq!(received.limit(), Some(10));
        assert_eq!(format!("{:?}", received.filter()), format!("{:?}", sent.filter()));
    }

    #[test]
    fn long_conjunctions_are_sent_and_deep_expressions_are_refused_by_the_sender() {
        let schema = Arc::clone(fragment().scan_schema());
        let chain = |operator: Operator| {
            (0..400_i64).fold(lit(true), |chain, value| {
                let part = binary(col("a", &schema).unwrap(), Operator::NotEq, lit(value), &schema).unwrap();
                binary(chain, operator, part, &schema).unwrap()
            })
        };
        let with = |filter| Fragment::try_new(Arc::clone(&schema), Some(filter), Vec::new(), None).unwrap();
        let message = encode_fragment(&with(chain(Operator::And))).unwrap();
        assert!(decode_fragment(&message, &SessionContext::new().task_ctx()).unwrap().filter().is_some());
        assert_eq!(encode_fragment(&with(chain(Operator::Or))).unwrap_err().code(), ErrorCode::NotSupported);
        // The deepest that is sent can be decoded.
        let deepest = (0..EXPRESSION_DEPTH_MAX - 2)
            .fold(binary(col("a", &schema).unwrap(), Operator::Gt, lit(1_i64), &schema).unwrap(), |inner, _| {
                datafusion::physical_expr::expressions::not(inner).unwrap()
            });
        let message = encode_fragment(&with(deepest)).unwrap();
        decode_fragment(&message, &SessionContext::new().task_ctx()).unwrap();
    }

    #[test]
    fn an_expression_without_its_value_is_not_sent() {
        let results = ScalarSubqueryResults::new(1);
        let subquery = ScalarSubqueryExpr::new(DataType::Int64, true, SubqueryIndex::new(0), results);
        let schema = Arc::clone(fragment().scan_schema());
        let filter = binary(col("a", &schema).unwrap(), Operator::Gt, Arc::new(subquery), &schema).unwrap();
        let sent = fragment().with_more_filters(vec![filter]).unwrap();
        let error = encode_fragment(&sent).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotSupported);
        assert!(error.message().contains("needs a subquery"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_fragment_are_refused_by_name() {
        let mut message = encode_fragment(&fragment()).unwrap();
        message.scan_schema = Bytes::from_static(b"nonsense");
        let error = decode_fragment(&message, &SessionContext::new().task_ctx()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidMessage);
        assert!(error.message().contains("fragment.scan_schema"), "{error}");
    }

    fn aggregate() -> Fragment {
        let fragment = fragment().with_limit(None);
        let schema = Arc::clone(fragment.projected_schema());
        let count = AggregateExprBuilder::new(count_udaf(), vec![col("x", &schema).unwrap()])
            .schema(Arc::clone(&schema))
            .alias("n")
            .build()
            .unwrap();
        let group = PhysicalGroupBy::new_single(vec![(col("x", &schema).unwrap(), "x".to_owned())]);
        let input = Arc::new(EmptyExec::new(Arc::clone(&schema)));
        let plan =
            AggregateExec::try_new(AggregateMode::Partial, group, vec![Arc::new(count)], vec![None], input, schema);
        fragment.with_reduction(Reduction::aggregate(&plan.unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn reductions_that_do_the_same_are_the_same_on_the_wire() {
        let schema = Arc::clone(fragment().projected_schema());
        let first_rows = || {
            let key = PhysicalSortExpr::new_default(col("x", &schema).unwrap());
            let input = Arc::new(EmptyExec::new(Arc::clone(&schema)));
            let sort = SortExec::new(LexOrdering::new([key]).unwrap(), input).with_fetch(Some(3));
            fragment().with_limit(None).with_reduction(Reduction::top_k(&sort).unwrap()).unwrap()
        };
        let largest = || {
            let largest = AggregateExprBuilder::new(max_udaf(), vec![col("x", &schema).unwrap()]);
            let largest = largest.schema(Arc::clone(&schema)).alias("n").build().unwrap();
            let (group, input) = (PhysicalGroupBy::default(), Arc::new(EmptyExec::new(Arc::clone(&schema))));
            let functions = vec![Arc::new(largest)];
            let mode = AggregateMode::Partial;
            let plan = AggregateExec::try_new(mode, group, functions, vec![None], input, Arc::clone(&schema)).unwrap();
            fragment().with_limit(None).with_reduction(Reduction::aggregate(&plan).unwrap()).unwrap()
        };
        assert_eq!(encode_fragment(&first_rows()).unwrap(), encode_fragment(&first_rows()).unwrap());
        assert_eq!(encode_fragment(&largest()).unwrap(), encode_fragment(&largest()).unwrap());
    }

    #[test]
    fn reductions_come_back_and_other_plans_are_refused() {
        let sent = aggregate();
        let mut message = encode_fragment(&sent).unwrap();
        let context = SessionContext::new().task_ctx();
        let received = decode_fragment(&message, &context).unwrap();
        assert_eq!(received.output_schema(), sent.output_schema());
        assert_eq!(received.reduction().unwrap().describe(), sent.reduction().unwrap().describe());
        let bare: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::clone(sent.scan_schema())));
        let bare = PhysicalPlanNode::try_from_physical_plan(bare, &DefaultPhysicalExtensionCodec {}).unwrap();
        message.reduction = bare.encode_to_vec().into();
        assert_eq!(decode_fragment(&message, &context).unwrap_err().code(), ErrorCode::NotSupported);
    }

    #[test]
    fn a_sort_of_all_rows_may_be_below_an_aggregate_and_one_of_the_first_may_not() {
        let fragment = fragment().with_limit(None);
        let schema = Arc::clone(fragment.projected_schema());
        let order = LexOrdering::new([PhysicalSortExpr::new_default(col("x", &schema).unwrap())]).unwrap();
        let second = AggregateExprBuilder::new(nth_value_udaf(), vec![col("x", &schema).unwrap(), lit(2_i64)]);
        let second = second.order_by(order.to_vec()).schema(Arc::clone(&schema)).alias("second").build().unwrap();
        let over = |input: Arc<dyn ExecutionPlan>| {
            let group = PhysicalGroupBy::new_single(Vec::new());
            let (functions, schema) = (vec![Arc::new(second.clone())], Arc::clone(&schema));
            AggregateExec::try_new(AggregateMode::Partial, group, functions, vec![None], input, schema).unwrap()
        };
        let rows: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::clone(&schema)));
        let sent = fragment.with_reduction(Reduction::aggregate(&over(Arc::clone(&rows))).unwrap()).unwrap();
        assert_eq!(sent.reduction().unwrap().order(), Some(&order));
        let mut message = encode_fragment(&sent).unwrap();
        let context = SessionContext::new().task_ctx();
        let received = decode_fragment(&message, &context).unwrap();
        assert_eq!(received.output_schema(), sent.output_schema());
        assert_eq!(received.reduction().unwrap().order(), Some(&order));
        let some = over(Arc::new(SortExec::new(order, rows).with_fetch(Some(3))));
        let some = PhysicalPlanNode::try_from_physical_plan(Arc::new(some), &DefaultPhysicalExtensionCodec {}).unwrap();
        message.reduction = some.encode_to_vec().into();
        assert_eq!(decode_fragment(&message, &context).unwrap_err().code(), ErrorCode::NotSupported);
    }

    #[test]
    fn what_groups_must_be_like_comes_back() {
        let plain = aggregate();
        let reduction = plain.reduction().unwrap();
        let schema = reduction.schema();
        let having = binary(col("n[count]", &schema).unwrap(), Operator::Gt, lit(7_i64), &schema).unwrap();
        let sent = plain.with_reduction(reduction.with_having(having).unwrap()).unwrap();
        let mut message = encode_fragment(&sent).unwrap();
        let context = SessionContext::new().task_ctx();
        let received = decode_fragment(&message, &context).unwrap();
        assert_eq!(received.reduction().unwrap().having().unwrap().to_string(), "n[count]@1 > 7");
        message.having = encode_expression(&col("n[count]", &schema).unwrap()).unwrap();
        let error = decode_fragment(&message, &context).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidMessage);
        assert!(error.message().contains("n[count]@1 does not tell which groups"), "{error}");
    }

    #[test]
    fn build_sides_come_back_and_streams_that_promise_more_than_they_have_are_refused() {
        let names: ArrayRef = Arc::new(StringViewArray::from(vec!["one", "a name that is not inlined"]));
        let build =
            RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef), ("name", names)]);
        let build = build.unwrap();
        let sent = encode_build(&build).unwrap();
        assert_eq!(decode_build(&sent).unwrap(), build);
        for place in 0..sent.len() {
            for value in [0, 0x7f, 0xff] {
                let mut changed = sent.to_vec();
                changed[place] = value;
                // Some changes do no harm; none may panic, or take memory that was not sent.
                if let Err(error) = decode_build(&changed.into()) {
                    assert_eq!(error.code(), ErrorCode::InvalidMessage, "{error}");
                }
            }
            assert!(decode_build(&sent.slice(..place)).is_err() || place > sent.len() - 9, "cut after {place} bytes");
        }
        let nulls = RecordBatch::try_from_iter([("n", Arc::new(arrow::array::NullArray::new(1 << 40)) as ArrayRef)]);
        let error = decode_build(&encode_build(&nulls.unwrap()).unwrap()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidMessage);
    }

    #[test]
    fn sets_of_keys_come_back() {
        let fragment = fragment();
        let schema = fragment.scan_schema();
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![3, 9]));
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec!["yes"]));
        let member = |column: &str, keys: &ArrayRef| {
            let set = KeySet::build(std::slice::from_ref(keys)).unwrap().unwrap();
            Arc::new(Membership::new(col(column, schema).unwrap(), set)) as Arc<dyn PhysicalExpr>
        };
        let sent = fragment.with_more_filters(vec![member("a", &keys), member("b", &texts)]).unwrap();
        let received = decode_fragment(&encode_fragment(&sent).unwrap(), &SessionContext::new().task_ctx()).unwrap();
        let rows = RecordBatch::try_new(
            Arc::clone(schema),
            vec![Arc::new(Int64Array::from(vec![9, 9, 8])), Arc::new(StringViewArray::from(vec!["yes", "no", "yes"]))],
        );
        let passed = received.filter().unwrap().evaluate(&rows.unwrap()).unwrap().into_array(3).unwrap();
        assert_eq!(passed.as_boolean().iter().map(Option::unwrap).collect::<Vec<_>>(), [true, false, false]);
    }
}
