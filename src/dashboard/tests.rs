//! Tests of the dashboard over a real state and a node that only pretends.

mod cluster;
mod house;
mod links;
mod live;
mod look;
mod pages;
mod safety;
