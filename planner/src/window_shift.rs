//! `lead` and `lag`, of which DataFusion 55 leaves out values where they look ahead by several that are not null and take
//! rows as they come (<https://github.com/apache/datafusion/issues/25471>): `lead(x, 2) IGNORE NULLS`, and `lag` over rows
//! that are in the opposite order. With all rows of a partition at hand they are right.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;
use datafusion::common::Result;
use datafusion::functions_window::lead_lag::{lag_udwf, lead_udwf};
use datafusion::logical_expr::function::{ExpressionArgs, PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{
    Documentation, LimitEffect, PartitionEvaluator, ReversedUDWF, Signature, WindowUDF, WindowUDFImpl,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;
use datafusion::scalar::ScalarValue;

/// Both, in place of those of DataFusion, whose names they have.
pub(crate) fn window_shifts() -> [Arc<WindowUDF>; 2] {
    [lead_udwf(), lag_udwf()].map(|shift| Arc::new(WindowUDF::from(WindowShift { shift })))
}

/// DataFusion's function, which sees all rows of a partition at once where it leaves out nulls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WindowShift {
    shift: Arc<WindowUDF>,
}

impl WindowUDFImpl for WindowShift {
    fn name(&self) -> &str {
        self.shift.name()
    }

    fn signature(&self) -> &Signature {
        self.shift.signature()
    }

    fn expressions(&self, arguments: ExpressionArgs<'_>) -> Vec<Arc<dyn PhysicalExpr>> {
        self.shift.expressions(arguments)
    }

    fn partition_evaluator(&self, arguments: PartitionEvaluatorArgs<'_>) -> Result<Box<dyn PartitionEvaluator>> {
        let leaves_out_nulls = arguments.ignore_nulls();
        let shift = self.shift.partition_evaluator_factory(arguments)?;
        Ok(if leaves_out_nulls { Box::new(AllRows { shift }) } else { shift })
    }

    fn field(&self, arguments: WindowUDFFieldArgs<'_>) -> Result<FieldRef> {
        self.shift.field(arguments)
    }

    fn reverse_expr(&self) -> ReversedUDWF {
        // The same function, which is told that it is reversed.
        ReversedUDWF::Reversed(Arc::new(WindowUDF::from(self.clone())))
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.shift.documentation()
    }

    fn limit_effect(&self, arguments: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        // DataFusion says that `lag` needs no row ahead, which it does where it is reversed, or goes back by less than none.
        let Some(offset) = arguments.get(1) else { return LimitEffect::Relative(1) };
        match offset.downcast_ref::<Literal>().map(Literal::value) {
            Some(ScalarValue::Int64(Some(rows))) => {
                usize::try_from(rows.unsigned_abs()).map_or(LimitEffect::Unknown, LimitEffect::Relative)
            }
            _ => LimitEffect::Unknown,
        }
    }
}

/// Evaluates all rows of a partition at once.
#[derive(Debug)]
struct AllRows {
    shift: Box<dyn PartitionEvaluator>,
}

impl PartitionEvaluator for AllRows {
    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        self.shift.evaluate_all(values, rows)
    }

    fn supports_bounded_execution(&self) -> bool {
        false
    }
}
