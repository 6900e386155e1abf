//! The subcommands, one file each.

mod cluster;
mod demo;
mod load;
mod serve;
mod sql;
mod storage_node;
mod tpch;

use aubade_environment::Environment;
use aubade_proto::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show a whole cluster in one process: TPC-H on replicated storage nodes, over gRPC on loopback
    Demo(demo::Demo),
    /// Make a cluster, look at one, or take a lost storage node out of it
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Run a storage node
    StorageNode(storage_node::StorageNodeCommand),
    /// Run a coordinator with the Flight SQL service
    Serve(serve::Serve),
    /// Run SQL, from the command line, a file, a pipe or the shell
    Sql(sql::Sql),
    /// Load Parquet or CSV files into a table
    Load(load::Load),
    /// Load and run the TPC-H benchmark
    #[command(subcommand)]
    Tpch(tpch::Tpch),
}

impl Command {
    pub(crate) async fn run(self, environment: Environment) -> Result<()> {
        match self {
            Self::Demo(demo) => demo.run(environment).await,
            Self::Cluster(cluster) => cluster.run(environment).await,
            Self::StorageNode(node) => node.run(environment).await,
            Self::Serve(serve) => serve.run(environment).await,
            Self::Sql(sql) => sql.run(environment).await,
            Self::Load(load) => load.run(environment).await,
            Self::Tpch(tpch) => tpch.run(environment).await,
        }
    }
}
