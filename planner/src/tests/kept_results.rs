//! How results of fragments are named, and how often they are looked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aubade_catalog::snapshot::Table;
use aubade_proto::Result;
use datafusion::datasource::sink::DataSink;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::collect;
use parking_lot::Mutex;

use super::{
    MemoryAccess, MemoryTable, PlannerOptions, TableAccess, customers, orders, planner_with, rows, run, snapshot,
    storage_scans,
};
use crate::access::ScanTask;
use crate::kept_results::{KeptResult, ResultStore};
use crate::result_key::ResultKey;

#[tokio::test]
async fn copies_of_a_scan_have_one_name_and_those_with_other_values_their_own() {
    let (planner, _) = planner_with(&[]);
    let query = planner.plan("select count(*) from orders where buyer > 5").await.unwrap();
    let scan = storage_scans(query.physical_plan()).swap_remove(0);
    let copies = [(); 2].map(|()| scan.attached(scan.snapshot(), scan.access()));
    let key = copies[0].named_fragment().key().unwrap();
    assert!(scan.named_fragment().has_key() && copies[1].named_fragment().has_key());
    assert_eq!(copies[1].named_fragment().key(), Some(key));
    // With another value, also where it is a copy of one that has a name.
    let query = planner.plan("select count(*) from orders where buyer > 6").await.unwrap();
    let other = storage_scans(query.physical_plan()).swap_remove(0);
    let bound = copies[0].with_other_filter(other.fragment().filter().unwrap(), true).unwrap().unwrap();
    assert!(!bound.named_fragment().has_key());
    assert_ne!(bound.named_fragment().key(), Some(key));
    assert_eq!(bound.named_fragment().key(), other.named_fragment().key());
}

#[tokio::test]
async fn the_name_of_a_fragment_with_subqueries_is_of_their_values() {
    let (planner, _) = planner_with(&[]);
    let names = async |subquery: &str| {
        let query = planner.plan(&format!("select count(*) from orders where buyer > ({subquery})")).await.unwrap();
        let scan = storage_scans(query.physical_plan()).into_iter().find(|scan| scan.table().name.name == "orders");
        let scan = scan.unwrap();
        assert_eq!(scan.named_fragment().key(), None, "the subquery has not run");
        run(&query).await.unwrap();
        assert!(!scan.named_fragment().has_key());
        scan.named_fragment().key()
    };
    let five = names("select max(id) - 4 from customer").await;
    assert!(five.is_some());
    assert_ne!(five, names("select max(id) - 3 from customer").await);
    assert_eq!(five, names("select min(id) + 5 from customer").await);
}

/// Results, and how often they were looked for.
#[derive(Debug, Default)]
struct Counting {
    results: Mutex<HashMap<ResultKey, Arc<KeptResult>>>,
    looks: AtomicUsize,
}

impl ResultStore for Counting {
    fn get(&self, key: &ResultKey) -> Option<Arc<KeptResult>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.results.lock().get(key).cloned()
    }

    fn add(&self, key: ResultKey, result: KeptResult) {
        self.results.lock().insert(key, Arc::new(result));
    }

    fn remove(&self, key: &ResultKey) {
        self.results.lock().remove(key);
    }
}

#[derive(Debug)]
struct Keeps {
    access: Arc<MemoryAccess>,
    store: Arc<Counting>,
}

impl TableAccess for Keeps {
    fn scan(&self, task: ScanTask, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.access.scan(task, context)
    }

    fn kept_results(&self) -> Option<Arc<dyn ResultStore>> {
        Some(Arc::clone(&self.store) as _)
    }

    fn sink(&self, table: Arc<Table>) -> Result<Arc<dyn DataSink>> {
        self.access.sink(table)
    }
}

#[tokio::test]
async fn a_result_of_a_broadcast_join_is_looked_for_once() {
    let store = Arc::new(Counting::default());
    let sql = "select name, count(*) from customer join orders on customer.id = buyer group by name";
    // Segments that are read when so many of orders are there.
    let read = async |segments: usize| {
        let orders = MemoryTable { segments: orders().segments[..segments].to_vec(), ..orders() };
        let tables = [orders, customers()];
        let access = MemoryAccess::new(&tables);
        let keeps = Keeps { access: Arc::clone(&access), store: Arc::clone(&store) };
        let mut config = crate::session_config(&PlannerOptions { target_partitions: Some(2), batch_rows: None });
        config.options_mut().set("aubade.pushdown", "on").unwrap();
        let template = crate::session_state(config, Arc::default());
        let state = crate::bind_snapshot(&template, snapshot(&tables, &[]), Arc::new(keeps));
        let plan = state.create_logical_plan(sql).await.unwrap();
        let plan = state.create_physical_plan(&plan).await.unwrap();
        let batches = collect(plan, state.task_ctx()).await.unwrap();
        assert_eq!(rows(&batches, sql).len(), 11);
        let tasks = access.tasks.lock();
        let of_orders = tasks.iter().filter(|task| task.table.name.name == "orders");
        of_orders.map(|task| task.segments.len()).sum::<usize>()
    };
    // Nothing is known; what is known is of some segments; and of all.
    for (run, (segments, reads)) in [(2, 2), (4, 2), (4, 0)].into_iter().enumerate() {
        assert_eq!(read(segments).await, reads);
        assert_eq!(store.looks.load(Ordering::Relaxed), run + 1);
    }
}
