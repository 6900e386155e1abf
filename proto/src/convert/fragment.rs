//! Fragments: Arrow IPC for schemas, datafusion-proto for expressions.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::{IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::utils::conjunction_opt;
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use datafusion_proto::physical_plan::DefaultPhysicalExtensionCodec;
use datafusion_proto::physical_plan::from_proto::parse_physical_expr;
use datafusion_proto::physical_plan::to_proto::serialize_physical_expr;
use datafusion_proto::protobuf::PhysicalExprNode;
use prost::Message;

use crate::code::ErrorCode;
use crate::error::{Error, Result, ResultExt};
use crate::fragment::{Fragment, ProjectionColumn};
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

/// The wire form of a fragment.
///
/// # Errors
/// [`ErrorCode::NotSupported`] when an expression has no wire form; the planner asks this before it
/// pushes anything.
pub fn encode_fragment(fragment: &Fragment) -> Result<wire::Fragment> {
    let projection = fragment.projection().iter().map(|column| {
        Ok(wire::NamedExpression { expression: encode_expression(&column.expression)?, name: column.name.clone() })
    });
    let conjuncts = fragment.filter().map(split_conjunction).unwrap_or_default();
    Ok(wire::Fragment {
        scan_schema: encode_schema(fragment.scan_schema())?,
        filter: conjuncts.into_iter().map(encode_expression).collect::<Result<_>>()?,
        projection: projection.collect::<Result<_>>()?,
        limit: fragment.limit(),
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
    let filter = conjunction_opt(conjuncts.collect::<Result<Vec<_>>>()?);
    let projection = message.projection.iter().map(|column| {
        let expression = decode_expression(&column.expression, &schema, functions, "fragment.projection")?;
        Ok(ProjectionColumn { expression, name: column.name.clone() })
    });
    Fragment::try_new(Arc::clone(&schema), filter, projection.collect::<Result<_>>()?, message.limit)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, col, lit};
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
    fn bytes_that_are_no_fragment_are_refused_by_name() {
        let mut message = encode_fragment(&fragment()).unwrap();
        message.scan_schema = Bytes::from_static(b"nonsense");
        let error = decode_fragment(&message, &SessionContext::new().task_ctx()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidMessage);
        assert!(error.message().contains("fragment.scan_schema"), "{error}");
    }
}
