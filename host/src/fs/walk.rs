//! Which folder a program that goes through a tree comes to next, and the pages that were listed
//! for it ahead.
//!
//! Such a program comes to a folder, then to those in it, then to the next one beside it: `find`,
//! `tar`, `rsync` and `cp` differ in the order of those beside each other only. Whoever came to the
//! folder that one of these orders says twice in a row is taken for one of them. While it is busy
//! with a folder, the guest lists those that come next.

use std::collections::VecDeque;

use guestmnt_protocol::path::{EntryName, GuestPath};

use super::directory::Page;
use super::listing::{ORDERS, Order};
use super::nodes::Lifetime;

/// How often in a row a program has to come where an order says.
const CONVINCING: u32 = 2;

/// First pages that are kept or on their way: of those that come next, and some for programs that
/// go elsewhere in between.
const MAX_PAGES: usize = 8;

/// A folder by its name in another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The folder that it is in.
    pub folder: Lifetime,
    /// Its name there.
    pub name: EntryName,
}

/// What is known of who goes through the tree.
#[derive(Default)]
pub struct Walk {
    /// The folder that was come to last.
    last: Option<Spot>,
    /// The folder that comes next, in each order.
    expected: [Option<Spot>; ORDERS.len()],
    /// How often in a row each order was right.
    hits: [u32; ORDERS.len()],
    /// First pages, the oldest first; `None` for those on their way.
    pages: VecDeque<(Spot, Option<Page>)>,
    /// What is to be listed, in this order.
    wanted: VecDeque<(Spot, GuestPath)>,
}

/// Where the first page of a folder is to be had.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstPage {
    /// Here.
    Here(Page),
    /// The guest is being asked for it: wait, and ask again.
    Coming,
    /// Only the guest has it.
    Guest,
}

impl Walk {
    /// Somebody begins to read a folder. Returns its first page, if it was listed ahead: once. What is
    /// not being listed yet is left to him: what is listed before it may be slow.
    pub fn first_page(&mut self, spot: &Spot) -> FirstPage {
        if self.last.as_ref() != Some(spot) {
            for (expected, hits) in self.expected.iter().zip(&mut self.hits) {
                *hits = if expected.as_ref() == Some(spot) { *hits + 1 } else { 0 };
            }
            self.last = Some(spot.clone());
        }
        let Some(index) = self.index(spot) else { return FirstPage::Guest };
        if self.pages[index].1.is_none() && !self.take_back(spot) {
            return FirstPage::Coming;
        }
        let page = self.pages.remove(index).and_then(|(_, page)| page);
        page.map_or(FirstPage::Guest, FirstPage::Here)
    }

    /// Notes where who goes by `order` comes to next.
    pub fn expect(&mut self, order: Order, next: Option<Spot>) {
        self.expected[order as usize] = next;
    }

    /// The order in which somebody goes through the tree.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        ORDERS.into_iter().find(|&order| self.hits[order as usize] >= CONVINCING)
    }

    /// Wants a folder listed ahead, unless it is.
    pub fn want(&mut self, spot: Spot, path: GuestPath) {
        if self.index(&spot).is_none() {
            if self.pages.len() == MAX_PAGES {
                self.pages.pop_front();
            }
            self.pages.push_back((spot.clone(), None));
            self.wanted.push_back((spot, path));
        }
    }

    /// Whether folders are to be listed.
    #[must_use]
    pub fn is_wanting(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The next folder to be listed, if one is still wanted.
    pub fn next_wanted(&mut self) -> Option<(Spot, GuestPath)> {
        while let Some((spot, path)) = self.wanted.pop_front() {
            if self.index(&spot).is_some() {
                return Some((spot, path));
            }
        }
        None
    }

    /// A folder that was wanted has been listed, or could not be: whoever comes to it asks again,
    /// and learns why.
    pub fn listed(&mut self, spot: &Spot, page: Option<Page>) {
        let Some(index) = self.index(spot) else { return };
        match page {
            Some(page) => self.pages[index].1 = Some(page),
            None => drop(self.pages.remove(index)),
        }
    }

    /// Does not want a folder any more. False where it is being listed.
    fn take_back(&mut self, spot: &Spot) -> bool {
        let before = self.wanted.len();
        self.wanted.retain(|(wanted, _)| wanted != spot);
        self.wanted.len() < before
    }

    fn index(&self, spot: &Spot) -> Option<usize> {
        self.pages.iter().position(|(of, _)| of == spot)
    }
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::attr::Following;

    use super::super::nodes::{Nodes, ROOT};
    use super::*;

    fn spot(name: &str) -> Spot {
        let folder = Nodes::new().lifetime(ROOT).unwrap();
        Spot { folder, name: EntryName::new(name.as_bytes()).unwrap() }
    }

    fn want(walk: &mut Walk, name: &str) {
        walk.want(spot(name), GuestPath::new(name.into()).unwrap());
    }

    fn page() -> Page {
        (Vec::new(), Following::Nothing)
    }

    #[test]
    fn who_comes_where_an_order_says_twice_in_a_row_goes_by_it() {
        let mut walk = Walk::default();
        let come = |walk: &mut Walk, to: &str, by_name: &str| {
            walk.first_page(&spot(to));
            walk.expect(Order::Name, Some(spot(by_name)));
            walk.expect(Order::Listed, Some(spot("z")));
            walk.order()
        };
        assert_eq!(come(&mut walk, "a", "b"), None);
        assert_eq!(come(&mut walk, "b", "c"), None);
        assert_eq!(come(&mut walk, "c", "d"), Some(Order::Name));
        // A page of the same folder once more says nothing.
        assert_eq!(come(&mut walk, "c", "d"), Some(Order::Name));
        assert_eq!(come(&mut walk, "d", "e"), Some(Order::Name));
        assert_eq!(come(&mut walk, "g", "h"), None);
        assert_eq!(come(&mut walk, "h", "i"), None);
    }

    #[test]
    fn a_page_is_given_once_and_waited_for_while_it_is_listed() {
        let mut walk = Walk::default();
        assert_eq!(walk.first_page(&spot("a")), FirstPage::Guest);
        want(&mut walk, "a");
        want(&mut walk, "a");
        assert_eq!(walk.next_wanted().map(|(wanted, _)| wanted), Some(spot("a")));
        assert_eq!(walk.next_wanted(), None);
        assert_eq!(walk.first_page(&spot("a")), FirstPage::Coming);
        walk.listed(&spot("a"), Some(page()));
        assert_eq!(walk.first_page(&spot("a")), FirstPage::Here(page()));
        assert_eq!(walk.first_page(&spot("a")), FirstPage::Guest);
    }

    #[test]
    fn what_is_not_being_listed_yet_is_left_to_who_comes_there() {
        let mut walk = Walk::default();
        want(&mut walk, "a");
        want(&mut walk, "b");
        assert_eq!(walk.first_page(&spot("b")), FirstPage::Guest);
        assert_eq!(walk.next_wanted().map(|(wanted, _)| wanted), Some(spot("a")));
        assert_eq!(walk.next_wanted(), None);
        want(&mut walk, "b");
        assert_eq!(walk.next_wanted().map(|(wanted, _)| wanted), Some(spot("b")));
    }

    #[test]
    fn what_cannot_be_listed_or_has_no_room_is_left_to_who_comes_there() {
        let mut walk = Walk::default();
        want(&mut walk, "bad");
        walk.listed(&spot("bad"), None);
        assert_eq!(walk.first_page(&spot("bad")), FirstPage::Guest);
        for number in 0..=MAX_PAGES {
            want(&mut walk, &number.to_string());
        }
        assert_eq!(walk.first_page(&spot("0")), FirstPage::Guest);
        assert_eq!(walk.next_wanted().map(|(wanted, _)| wanted), Some(spot("1")));
        walk.listed(&spot("0"), Some(page()));
        assert_eq!(walk.first_page(&spot("0")), FirstPage::Guest);
    }
}
